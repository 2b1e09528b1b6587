"""Train the embedded tiny model from scratch, and check that it is good but imperfect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from stir_train.artifacts.atomic import write_text
from stir_train.config.inputs import ModelConfig, TaskConfig
from stir_train.data.grading import grade_batch
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import render_prompts
from stir_train.distributed.engine import PlainEngine
from stir_train.distributed.world import alone
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import load_model
from stir_train.monitoring.console import progress
from stir_train.tasks.families import HELD_OUT_POOL, embedded_family
from stir_train.tasks.problem import Problem, TaskFamily, held_out_problems
from stir_train.tasks.tiny_model import (
    TinyRecipe,
    build_model,
    build_optimizers,
    corpus_batches,
    corpus_loss,
)
from stir_train.tasks.tokenizer import build_tokenizer
from stir_train.train.loop import FitPlan, fit, warmup_then_linear

COMPETENCE_SEED = 1
"""Seed of the problems behind the competence check; the experiments' pool is left out of them."""
NUM_SAMPLES, TEMPERATURE, TOP_P, MAX_NEW_TOKENS = 8, 0.7, 0.95, 320
WASTE = 1.33


@dataclass(frozen=True)
class Competence:
    """What a tiny model can do: greedy accuracy, mean@1 and pass@8 at temperature 0.7.

    Attributes:
        shortest_tokens: Mean length of the shortest right sample of each problem that has one.
    """

    num_problems: int
    greedy: float
    mean_at_1: float
    pass_at_8: float
    greedy_tokens: float
    shortest_tokens: float

    @property
    def passes(self) -> bool:
        """Good but imperfect: pass@8 above 90 %, and headroom in accuracy or in tokens.

        That is a greedy accuracy of 50 to 80 %, or a higher one at a third more tokens than needed.
        """
        wasteful = self.greedy_tokens > WASTE * self.shortest_tokens
        return self.pass_at_8 > 0.9 and (
            0.5 <= self.greedy <= 0.8 or (self.greedy > 0.8 and wasteful)
        )


def train_tiny(
    family_names: Sequence[str], recipe: TinyRecipe, output: Path, console: Console
) -> None:
    """Train one tiny model on one thread, so that the same seed gives the same weights.

    Args:
        family_names: What it learns, in equal shares.
        recipe: Sizes, rates and steps, those of all families together.
        output: Directory to write.
        console: For progress.
    """
    torch.set_num_threads(1)
    families = [embedded_family(name) for name in family_names]
    tokenizer = build_tokenizer(families, max_tokens=recipe.max_tokens)
    model = build_model(recipe, tokenizer)
    title = f"tiny model ({', '.join(family_names)})"
    with progress(console, title, recipe.num_steps, "steps") as advance:
        fit(
            PlainEngine(model, build_optimizers(model, recipe), alone()),
            lambda step: (
                [b] for b in islice(corpus_batches(families, tokenizer, recipe), step, None)
            ),
            lambda batch: corpus_loss(model, batch),
            FitPlan(
                num_steps=recipe.num_steps,
                schedule=warmup_then_linear(
                    recipe.num_steps, warmup_steps=recipe.warmup_steps, decay_from=recipe.decay_from
                ),
                seed=recipe.seed,
                on_step=lambda record: advance(1, f"loss {record.loss:.3f}"),
            ),
        )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def measure_competence(family_name: str, model_path: str, num_problems: int) -> Competence:
    """Greedy and sampled accuracy on reserved problems that no experiment uses for choosing."""
    loaded = load_model(ModelConfig(name=model_path))
    task = TaskConfig(name=family_name)
    problems = _problems(embedded_family(family_name), num_problems)
    prompts = render_prompts(problems, task, loaded.tokenizer)
    engine = DecodeEngine(loaded, max_rows=256)
    greedy = SamplingParams(MAX_NEW_TOKENS, loaded.stop_token_ids)
    sampled = replace(greedy, temperature=TEMPERATURE, top_p=TOP_P)

    def correct(sampling: SamplingParams, num_samples: int) -> tuple[list[bool], list[int]]:
        requests = [GenerationRequest(p, k) for p in prompts for k in range(num_samples)]
        rollouts = engine.generate(requests, sampling, seed=COMPETENCE_SEED).rollouts
        texts = [loaded.decode(r.token_ids) for r in rollouts]
        golds = [request.prompt.gold for request in requests]
        truncated = [r.truncated for r in rollouts]
        grades = grade_batch(task, zip(texts, golds, truncated, strict=True))
        return [grade.correct for grade in grades], [len(r.token_ids) for r in rollouts]

    once, tokens = correct(greedy, 1)
    many, lengths = correct(sampled, NUM_SAMPLES)
    groups = [slice(i, i + NUM_SAMPLES) for i in range(0, len(many), NUM_SAMPLES)]
    solved = [any(many[group]) for group in groups]
    shortest = [
        min(length for length, right in zip(lengths[group], many[group], strict=True) if right)
        for group, any_right in zip(groups, solved, strict=True)
        if any_right
    ]
    return Competence(
        num_problems=num_problems,
        greedy=sum(once) / len(once),
        mean_at_1=sum(many) / len(many),
        pass_at_8=sum(solved) / len(solved),
        greedy_tokens=sum(tokens) / len(tokens),
        shortest_tokens=sum(shortest) / max(1, len(shortest)),
    )


def write_problems(family_name: str, num_problems: int, seed: int, path: Path) -> None:
    """Write reserved problems of no embedded split as JSONL: columns ``question`` and ``answer``."""
    rows = _fresh_problems(embedded_family(family_name), num_problems, seed)
    lines = [json.dumps({"question": row.question, "answer": row.answer}) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def _problems(family: TaskFamily, count: int) -> list[SourceProblem]:
    return [
        SourceProblem(p.question, p.answer, content=p.content, kind=p.kind)
        for p in _fresh_problems(family, count, COMPETENCE_SEED)
    ]


def _fresh_problems(family: TaskFamily, count: int, seed: int) -> list[Problem]:
    """Reserved problems that no run on the embedded family has in a split."""
    used = {problem.content for problem in held_out_problems(family, HELD_OUT_POOL)}
    return held_out_problems(family, count, seed=seed, without=used)
