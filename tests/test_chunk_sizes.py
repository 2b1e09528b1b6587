"""How a run's completions are cut into chunks."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stir_train.answering.model import ModelAnswerer
from stir_train.config.stages import GenerationConfig
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.generation.backend import ControlSpec, SamplingParams
from stir_train.runtime import generation
from stir_train.runtime.generation import GenerationJob, _units, generate_after
from stir_train.types.rollout import Prompt

sizes = st.integers(1, 60)


@given(num_prompts=sizes, num_samples=st.integers(1, 6), most=sizes, num_shares=st.integers(1, 5))
def test_chunks_are_no_larger_than_asked_and_shared_out_evenly(
    num_prompts: int, num_samples: int, most: int, num_shares: int
) -> None:
    limits = GenerationConfig(chunk_completions=most, num_shares=num_shares)
    size = limits.prompts_per_chunk(num_prompts, num_samples)
    assert 1 <= size <= max(1, most // num_samples)
    # Whole rounds, in which every process has one: no chunk smaller than that asks for.
    rounds = -(-num_prompts // (size * num_shares))
    assert size == -(-num_prompts // (rounds * num_shares))
    fewer = rounds - 1
    assert fewer == 0 or fewer * num_shares * max(1, most // num_samples) < num_prompts


CONTROL = ControlSpec(
    ControlPointAutomaton(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool)),
    8,
    (1,),
)


def _sets(num_sets: int, num_prompts: int, **limits: int) -> list[list[tuple[str, int]]]:
    """Sets of greedy answers under fixed vectors: what is decoded in one go, of which set how many."""
    prompts = [Prompt(f"{n}", "", "", (1,), "") for n in range(num_prompts)]
    answerer = ModelAnswerer(
        "m", lambda: cast("Any", None), CONTROL, 0, is_fixed_from_the_prompt_on=True
    )
    jobs = [
        GenerationJob(prompts, answerer, SamplingParams(8, ()), prefix=f"{n}/")
        for n in range(num_sets)
    ]
    context: Any = SimpleNamespace(config=SimpleNamespace(generation=GenerationConfig(**limits)))
    size = GenerationConfig(**limits).prompts_per_chunk(num_prompts)
    return [
        [(one.job.prefix, min(size, num_prompts - one.number * size)) for one in unit]
        for unit in _units(context, jobs)
    ]


def test_small_sets_that_share_batches_are_shared_out_evenly_too() -> None:
    def loads(num_sets: int, num_prompts: int, **limits: int) -> list[int]:
        units = _sets(num_sets, num_prompts, **limits)
        assert sum(size for unit in units for _, size in unit) == num_sets * num_prompts
        return [sum(size for _, size in unit) for unit in units]

    assert loads(4, 96) == [192, 192]
    assert loads(2, 96) == [192]
    assert loads(4, 96, num_shares=2) == [192, 192]
    assert loads(4, 128, num_shares=2) == [256, 256]
    assert loads(1, 128, num_shares=2) == [64, 64], "a student's round keeps nobody idle"
    assert loads(3, 100, chunk_completions=100) == [100, 100, 100]


@pytest.mark.parametrize("decides", [False, True])
def test_greedy_answers_share_batches_unless_a_controller_is_to_answer_as_they_do(
    monkeypatch: pytest.MonkeyPatch, decides: bool
) -> None:
    prompts = [Prompt(f"{n}", "", "", (1,), "") for n in range(96)]
    plain = ModelAnswerer("m", lambda: cast("Any", None), CONTROL, 0)
    fixed, decided = (
        dataclasses.replace(
            plain, make_controller=cast("Any", tuple), is_fixed_from_the_prompt_on=is_fixed
        )
        for is_fixed in (True, False)
    )

    def job(name: str, answerer: ModelAnswerer) -> GenerationJob:
        return GenerationJob(prompts, answerer, SamplingParams(8, ()), prefix=f"{name}/")

    made: list[GenerationJob] = []
    monkeypatch.setattr(generation, "generate_jobs", lambda *given: made.extend(given[2]))
    context: Any = SimpleNamespace(config=SimpleNamespace(generation=GenerationConfig()))
    others = [job("vector", fixed), job("empty", decided)][: 2 if decides else 1]
    generate_after(context, cast("Any", None), [job("greedy", plain)], others, cast("Any", None))
    units = [[one.job.prefix for one in unit] for unit in _units(context, made)]
    if decides:
        assert units == [["greedy/"], ["vector/"], ["empty/"]], "one near tie would tell them apart"
    else:
        assert units == [["greedy/", "vector/"]]
