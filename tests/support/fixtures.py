"""Shared fixtures: the embedded model, some of its problems, and an engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from stir_train.baselines.interface import AnsweringContext, HarvestData
from stir_train.config.inputs import ModelConfig, TaskConfig
from stir_train.config.stages import ControlPointConfig
from stir_train.data.control_points import ControlPointAutomaton, build_automaton
from stir_train.data.grading import grade_batch
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import render_prompts, reword, spaced
from stir_train.generation.backend import ControlSpec, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel, load_model
from stir_train.tasks.families import FAMILIES
from stir_train.tasks.problem import held_out_problems
from stir_train.types.rollout import Prompt, Rollout
from tests.support import bases
from tests.support.made_once import made_once
from tests.support.smoke import run_smoke

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    return load_model(ModelConfig(name="embedded/addition"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke run, with what wandb was told of it."""
    return made_once(tmp_path_factory, "finished", _make_smoke_run)


def _make_smoke_run(output: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            monkeypatch.setenv(name, str(output / name))
        completed = run_smoke(output, "tracking={wandb: offline, tags: [mine]}")
    assert completed.returncode == 0, completed.stderr
    assert "held-out problems" in completed.stderr
    assert "lora-student" in completed.stderr


@pytest.fixture(scope="session")
def prompts(loaded: LoadedModel) -> list[Prompt]:
    problems = held_out_problems(FAMILIES["addition"], 24, seed=5)
    sources = [SourceProblem(p.question, p.answer, p.content, p.kind) for p in problems]
    return render_prompts(sources, TaskConfig(), loaded.tokenizer)


@pytest.fixture(scope="session")
def automaton(loaded: LoadedModel) -> ControlPointAutomaton:
    return build_automaton(
        loaded.tokenizer, ControlPointConfig(), vocab_size=loaded.model.config.vocab_size
    )


@pytest.fixture(scope="session")
def engine(loaded: LoadedModel) -> DecodeEngine:
    return DecodeEngine(loaded, max_rows=16)


@pytest.fixture(scope="session")
def greedy(loaded: LoadedModel) -> SamplingParams:
    return SamplingParams(96, loaded.stop_token_ids)


@pytest.fixture(scope="session")
def harvest(loaded: LoadedModel) -> HarvestData:
    graded, captured = bases.harvest()
    return HarvestData(loaded, bases.prompts(), graded, captured, bases.basis(), bases.READS)


@pytest.fixture(scope="session")
def answering(loaded: LoadedModel, automaton: ControlPointAutomaton) -> AnsweringContext:
    def answers_of(prompts: list[Prompt], texts: list[str]) -> list[str]:
        items = [(text, p.gold, False) for p, text in zip(prompts, texts, strict=True)]
        return [grade.extracted for grade in grade_batch(TaskConfig(), items)]

    greedy = SamplingParams(bases.BUDGET, loaded.stop_token_ids)
    vocabulary = loaded.tokenizer.get_vocab()
    return AnsweringContext(
        loaded=loaded,
        engine=DecodeEngine(loaded, max_rows=16),
        greedy=greedy,
        sampled=dataclasses.replace(greedy, temperature=0.7, top_p=0.95),
        control=ControlSpec(automaton, bases.MAX_POINTS),
        seed=0,
        answers_of=answers_of,
        reword=lambda prompts, wording: reword(prompts, wording, TaskConfig(), loaded.tokenizer),
        answer_prompt=tuple(
            loaded.tokenizer(spaced("Answer:", loaded.tokenizer), add_special_tokens=False)[
                "input_ids"
            ]
        ),
        delimiter_ids=tuple(i for token, i in vocabulary.items() if "\n\n" in token),
    )


@pytest.fixture(scope="session")
def plain(answering: AnsweringContext, prompts: list[Prompt]) -> list[Rollout]:
    return answering.answer(prompts)
