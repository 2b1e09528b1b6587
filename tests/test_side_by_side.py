"""Answers under several sets of fixed vectors, decoded in one batch, are those of each by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from stir_train.answering.continued import ContinuedAnswerer, GreedyAnswers, waits_for_greedy
from stir_train.answering.model import ModelAnswerer
from stir_train.answering.side_by_side import answer_side_by_side, fixed_from_the_prompt_on
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.generation.backend import ControlSpec, SamplingParams
from stir_train.generation.fixed import FixedVector
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel
from stir_train.types.places import Place
from stir_train.types.rollout import Prompt, Rollout
from tests.support import bases

WIDTH, BUDGET = 64, 64


def _vector(place: Place, block: int, strength: float, seed: int) -> FixedVector:
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return FixedVector(place, block, vector, 6 * strength)


SETS = {
    "prompt_end": (_vector("prompt_end", 2, 1.5, 0),),
    "every_token": (_vector("every_token", 1, 0.3, 1),),
    "everywhere": (_vector("everywhere", 3, 0.4, 2),),
    "two": (_vector("every_token", 3, 0.3, 3), _vector("prompt_end", 1, 1.1, 4)),
    "one block": (_vector("everywhere", 2, 0.3, 5), _vector("prompt_end", 2, 0.7, 6)),
    "strength 0": (_vector("every_token", 2, 0.0, 7),),
}


@pytest.fixture
def answerers(loaded: LoadedModel, automaton: ControlPointAutomaton) -> dict[str, ModelAnswerer]:
    engine = DecodeEngine(loaded, max_rows=16)
    control = ControlSpec(automaton, bases.MAX_POINTS)

    def under(vectors: Sequence[FixedVector]) -> ModelAnswerer:
        return ModelAnswerer(
            "base",
            lambda: engine,
            control,
            0,
            lambda: tuple(vectors),
            is_fixed_from_the_prompt_on=True,
        )

    return {name: under(vectors) for name, vectors in SETS.items()}


def _without_logprobs(rollout: Rollout) -> Rollout:
    return dataclasses.replace(rollout, logprobs=())


def test_each_answers_as_by_itself(
    answerers: dict[str, ModelAnswerer], loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    sampling = SamplingParams(BUDGET, loaded.stop_token_ids)
    # The same problems for all, and not as many for each: prefills are not shared between them.
    asked = [(one, prompts[: 5 + number]) for number, one in enumerate(answerers.values())]
    greedy = dataclasses.replace(asked[0][0], make_controller=None).without_states()
    asked.append((greedy, prompts[:6]))
    num_heard = 0

    def listen(_index: int, _token: int) -> None:
        nonlocal num_heard
        num_heard += 1

    found = answer_side_by_side(asked, sampling, listen)
    for (answerer, some), together in zip(asked, found, strict=True):
        alone = answerer.answer(some, num_samples=1, sampling=sampling)
        assert [*map(_without_logprobs, together.rollouts)] == [
            *map(_without_logprobs, alone.rollouts)
        ]
        for one, other in zip(together.rollouts, alone.rollouts, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert together.decisions == alone.decisions
    assert num_heard == sum(len(r.token_ids) for made in found for r in made.rollouts)
    answers = {tuple(rollout.token_ids for rollout in made.rollouts[:5]) for made in found}
    assert len(answers) > 3, "the vectors do something"


def _no_greedy(_prompts: Sequence[Prompt]) -> GreedyAnswers:
    raise AssertionError("nothing to go on from")


@pytest.mark.parametrize("name", SETS)
def test_a_set_by_itself_needs_no_greedy_answers_which_another_process_may_still_make(
    answerers: dict[str, ModelAnswerer], loaded: LoadedModel, prompts: list[Prompt], name: str
) -> None:
    sampling = SamplingParams(BUDGET, loaded.stop_token_ids)
    continued = ContinuedAnswerer(answerers[name], _no_greedy)
    assert not waits_for_greedy(continued)
    made = continued.answer(prompts[:4], num_samples=1, sampling=sampling)
    assert made == answerers[name].answer(prompts[:4], num_samples=1, sampling=sampling)


def test_only_what_is_fixed_from_the_prompt_on_shares_batches(
    answerers: dict[str, ModelAnswerer], loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    fixed = answerers["two"]
    plain = dataclasses.replace(fixed, is_fixed_from_the_prompt_on=False)
    assert fixed_from_the_prompt_on(ContinuedAnswerer(fixed, _no_greedy)) is fixed
    assert fixed_from_the_prompt_on(plain) is None
    assert fixed_from_the_prompt_on(plain.without_states()) is None, "a controller that may look"
    control = dataclasses.replace(fixed.control, capture_blocks=(0,))
    greedy = dataclasses.replace(plain, make_controller=None, control=control)
    assert fixed_from_the_prompt_on(greedy) is None
    shares = fixed_from_the_prompt_on(greedy.without_states())
    assert shares is not None
    assert shares.control.capture_blocks == ()
    with pytest.raises(ValueError, match="greedy"):
        answer_side_by_side(
            [(fixed, prompts)], SamplingParams(8, loaded.stop_token_ids, temperature=0.5)
        )
