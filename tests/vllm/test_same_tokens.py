"""vLLM and our engine, over the same model in fp32, make the same tokens, states and decisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import get_args

import pytest
import torch

from stir_train.config.steering import SimilaritySteering, StaticSteering, ValueSteering
from stir_train.generation.backend import (
    Ability,
    GenerationBackend,
    GenerationRequest,
    PlannedImpulse,
    SamplingParams,
)
from stir_train.generation.controller import Controller
from stir_train.generation.fixed import FixedVector
from stir_train.generation.vllm.engine import VLLMEngine
from stir_train.models.load import LoadedModel
from stir_train.steering.controller import BasisController, IdleController
from stir_train.steering.static import StaticController
from stir_train.types.places import Place
from stir_train.types.rollout import Prompt
from tests.support import bases
from tests.vllm.conftest import BUDGET, Pair

PLACES: tuple[Place, ...] = get_args(Place)


def _vector(seed: int, norm: float = 60.0) -> torch.Tensor:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(seed))
    return norm * vector / vector.norm()


def test_the_widened_model_is_the_embedded_one(
    loaded: LoadedModel, wide: LoadedModel, prompts: list[Prompt]
) -> None:
    ids = torch.tensor([prompts[0].token_ids])
    a, b = loaded.model(input_ids=ids).logits, wide.model(input_ids=ids).logits
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 5, "repetition_penalty": 1.2},
        {"repetition_penalty": 1.3},
    ],
    ids=["greedy", "sampled", "nucleus", "top-k-penalised", "greedy-penalised"],
)
def test_plain_decoding(
    changes: dict[str, float], pair: Pair, prompts: list[Prompt], briefly: SamplingParams
) -> None:
    sampling = dataclasses.replace(briefly, **changes)
    requests = [GenerationRequest(prompt, k) for prompt in prompts[:6] for k in range(3)]
    made = pair.require_same(requests, sampling)
    assert made.states is not None
    assert len(made.states.labels) > 20
    # Prompts are fed while others decode: fewer passes than if they took turns.
    assert 1 < made.cost.prefill_passes < made.cost.forward_passes
    if sampling.temperature:
        assert len({r.token_ids for r in made.rollouts}) > 6, "samples have noise of their own"


STEERED = (*PLACES, "two vectors", "none", "static", "similarity", "value", "vector and value")


def steering_named(name: str) -> tuple[Controller, ...]:
    """What steers, made when it is asked for: bases are harvested first."""
    if name in PLACES:
        return (FixedVector(name, 3, _vector(1)),)
    if name == "two vectors":
        return (
            FixedVector("everywhere", 2, _vector(1, 20.0)),
            FixedVector("prompt_end", 4, _vector(2, 20.0), 2.0),
        )
    basis, block = bases.basis(), bases.BLOCK
    if name == "none":
        return (IdleController(block),)
    if name == "static":
        settings = StaticSteering(strength=2.0)
        return (StaticController(basis, settings, block=block, device=torch.device("cpu")),)
    if name == "similarity":
        return (BasisController(basis, SimilaritySteering(strength=0.75), block=block),)
    judged = ValueSteering(strength=3.0, margin=-1.0, doubt=0.0, only_familiar=False)
    value = BasisController(basis, judged, block=block, head=bases.value_head())
    return (value,) if name == "value" else (FixedVector("segment", 1, _vector(3, 5.0)), value)


@pytest.mark.parametrize("name", STEERED)
def test_steered_decoding(
    name: str, pair: Pair, requests: list[GenerationRequest], briefly: SamplingParams
) -> None:
    steering = steering_named(name)
    made = pair.require_same(requests, briefly, steering)
    plain = pair.theirs.generate(requests, briefly, seed=3, control=pair.control)
    changed = sum(
        a.logprobs != b.logprobs for a, b in zip(made.rollouts, plain.rollouts, strict=True)
    )
    assert (changed == 0) == (name == "none")
    # At no pass more: a prefill for the first token, then a pass a token.
    assert [r.forward_passes for r in made.rollouts] == [len(r.token_ids) for r in made.rollouts]


def test_steered_samples(pair: Pair, prompts: list[Prompt], briefly: SamplingParams) -> None:
    sampling = dataclasses.replace(briefly, temperature=0.7, top_p=0.95)
    requests = [GenerationRequest(prompt, k) for prompt in prompts[:5] for k in range(3)]
    pair.require_same(requests, sampling, steering_named("value"))


@pytest.mark.parametrize("place", PLACES)
def test_continued_with_what_is_planned(
    place: Place, pair: Pair, requests: list[GenerationRequest], briefly: SamplingParams
) -> None:
    pair.require_same(_continued(pair.ours, requests, briefly, place), briefly)


def test_continued_and_steered_on(
    pair: Pair, requests: list[GenerationRequest], briefly: SamplingParams
) -> None:
    continued = _continued(pair.ours, requests, briefly, "control_point")
    made = pair.require_same(continued, briefly, steering_named("static"))
    for request, rollout in zip(continued, made.rollouts, strict=True):
        assert all(i.token_index >= len(request.prefix_token_ids) for i in rollout.impulses)


def _continued(
    engine: GenerationBackend,
    requests: Sequence[GenerationRequest],
    sampling: SamplingParams,
    place: Place,
) -> list[GenerationRequest]:
    """Completions up to a few tokens behind their first control point, with something planned there."""
    made = engine.generate(requests, sampling, seed=3)
    continued = []
    for request, rollout in zip(requests, made.rollouts, strict=True):
        prefix = rollout.token_ids[: min(40, len(rollout.token_ids) - 2)]
        at = -1 if place not in ("control_point", "segment") else len(prefix) // 2
        planned = (PlannedImpulse(at, 3, _vector(4), place),)
        continued.append(dataclasses.replace(request, prefix_token_ids=prefix, planned=planned))
    return continued


def test_tokens_are_streamed_in_order(
    pair: Pair, requests: list[GenerationRequest], briefly: SamplingParams
) -> None:
    heard: dict[int, list[int]] = {}
    made = pair.theirs.generate(
        requests,
        briefly,
        seed=3,
        listener=lambda index, token: heard.setdefault(index, []).append(token),
    )
    assert [tuple(heard[i]) for i in range(len(requests))] == [r.token_ids for r in made.rollouts]
    assert made.states is None


def test_an_engine_that_is_closed_leaves_others_running(
    pair: Pair, wide: LoadedModel, requests: list[GenerationRequest], briefly: SamplingParams
) -> None:
    pair.require_same(requests[:2], briefly)
    other = VLLMEngine(wide, max_rows=2)
    pair.require_same(requests[:2], briefly, theirs=other)
    other.close()
    pair.require_same(requests[:2], briefly)
    pair.require_same(requests[:2], briefly, theirs=other)
    other.close()


def test_nothing_asked_is_nothing_done(pair: Pair, briefly: SamplingParams) -> None:
    made = pair.theirs.generate([], briefly, seed=0, control=pair.control)
    assert made.rollouts == ()


def test_what_it_can_do(pair: Pair) -> None:
    assert isinstance(pair.theirs, GenerationBackend)
    lacking = {Ability.PREVIEW, Ability.EDIT_WEIGHTS, Ability.TELL_UNCERTAINTY}
    assert frozenset(Ability) - pair.theirs.abilities == lacking
    assert BUDGET < 256, "the engine is started once for all of these"
