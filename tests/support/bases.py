"""Control bases for tests: harvested from real rollouts of the embedded model."""

from __future__ import annotations

from functools import cache

import torch

from stir_train.basis.select import BlockSelection, select_basis
from stir_train.config.inputs import ModelConfig, TaskConfig
from stir_train.config.stages import BasisConfig, ControlPointConfig, RolloutConfig, ValueConfig
from stir_train.data.control_points import build_automaton
from stir_train.data.grading import grade_batch, reward
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import render_prompts
from stir_train.distributed.world import alone
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.harvest.contrast import contrast_rollouts
from stir_train.models.load import load_model
from stir_train.models.value_head import ValueHead
from stir_train.stores.gathered import HeldStates
from stir_train.stores.states import StateLabels
from stir_train.tasks.families import FAMILIES
from stir_train.tasks.problem import held_out_problems
from stir_train.types.rollout import GradedRollout, Prompt
from stir_train.types.steering import Candidates, ControlBasis
from stir_train.types.trajectory import CapturedStates
from stir_train.value.fit import fit_value_head
from stir_train.value.targets import ExampleInputs, ValueExamples, build_examples

BLOCK, MAX_POINTS, BUDGET = 4, 8, 128
READS = (3, BLOCK)
"""What the head sees: the steered block and the one below."""


@cache
def prompts(num_prompts: int = 40) -> list[Prompt]:
    """Some problems."""
    loaded = load_model(ModelConfig(name="embedded/addition"))
    problems = held_out_problems(FAMILIES["addition"], num_prompts, seed=6)
    sources = [SourceProblem(p.question, p.answer, p.content, p.kind) for p in problems]
    return render_prompts(sources, TaskConfig(), loaded.tokenizer)


@cache
def harvest(num_prompts: int = 40) -> tuple[tuple[GradedRollout, ...], CapturedStates]:
    """Graded rollouts of some problems and their states at blocks 3 and 4."""
    loaded = load_model(ModelConfig(name="embedded/addition"))
    automaton = build_automaton(loaded.tokenizer, ControlPointConfig(), vocab_size=65)
    requests = [GenerationRequest(p, k) for p in prompts(num_prompts) for k in range(8)]
    result = DecodeEngine(loaded, max_rows=320).generate(
        requests,
        SamplingParams(BUDGET, loaded.stop_token_ids, temperature=0.7, top_p=0.95),
        seed=0,
        control=ControlSpec(automaton, MAX_POINTS, (3, BLOCK)),
    )
    texts = [loaded.decode(r.token_ids) for r in result.rollouts]
    golds = [r.prompt.gold for r in requests]
    truncated = [r.truncated for r in result.rollouts]
    grades = grade_batch(TaskConfig(), zip(texts, golds, truncated, strict=True))
    graded = tuple(
        GradedRollout(r, t, g, reward(g, r, RolloutConfig(), max_new_tokens=BUDGET))
        for r, t, g in zip(result.rollouts, texts, grades, strict=True)
    )
    assert result.states is not None
    return graded, result.states


@cache
def candidates() -> Candidates:
    """The contrasts of that harvest."""
    graded, states = harvest()
    return contrast_rollouts(
        graded, states, max_points=MAX_POINTS, num_positive=2, num_negative=3, keep_truncated=False
    )


def select(found: Candidates, config: BasisConfig) -> list[BlockSelection]:
    """Select from contrasts that are all here."""
    return select_basis([found], config, seed=0, world=alone())


@cache
def basis(size: int = 64) -> ControlBasis:
    """A small control basis over blocks 3 and 4."""
    parts = select(candidates(), BasisConfig(size=size))
    return ControlBasis.concatenate([part.basis for part in parts])


def prompt_numbers(graded: tuple[GradedRollout, ...]) -> dict[str, int]:
    """Number the problems in order."""
    return {p: i for i, p in enumerate(dict.fromkeys(g.rollout.prompt_id for g in graded))}


def inputs(captured: CapturedStates, directions: torch.Tensor | None = None) -> ExampleInputs:
    """Captured states as a head reads them, all blocks side by side."""
    num_blocks, width = captured.states.shape[1:]
    return ExampleInputs(
        HeldStates(captured.states.flatten(1)),
        slice(0, num_blocks * width),
        torch.zeros(0, width) if directions is None else directions,
    )


def examples() -> ValueExamples:
    """What that harvest says to a head that reads both blocks."""
    graded, captured = harvest()
    rollouts = [item.rollout for item in graded]
    return build_examples(
        inputs(captured),
        [item.outcome for item in graded],
        StateLabels.of(captured.labels, rollouts),
        prompt_numbers(graded),
    )


@cache
def value_head() -> ValueHead:
    """A value head for the steered block."""
    train, validation = examples().split_by_prompt(0.2, torch.Generator().manual_seed(0))
    config = ValueConfig(num_steps=60, hidden_width=32, num_members=2)
    head, _ = fit_value_head(
        train,
        validation,
        config,
        reads=READS,
        max_points=MAX_POINTS,
        max_new_tokens=BUDGET,
        seed=0,
    )
    return head
