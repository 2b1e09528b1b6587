"""Vectors at every place: in the engine, in plain ``generate``, in one teacher-forced pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
import torch

from stir_train.config.steering import SimilaritySteering
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.errors import ConfigError, StageError
from stir_train.generation.backend import (
    Ability,
    ControlSpec,
    GenerationBackend,
    GenerationRequest,
    PlannedImpulse,
    SamplingParams,
    require_abilities,
)
from stir_train.generation.controller import Controller
from stir_train.generation.fixed import FixedVector
from stir_train.generation.open import Limits, abilities_of, open_backend
from stir_train.generation.teacher_forced import teacher_force
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel
from stir_train.steering.attach import attached
from stir_train.steering.controller import BasisController
from stir_train.types.places import Place
from stir_train.types.rollout import Prompt
from tests.support import bases
from tests.support.slow_steering import SlowSteering

PLACES: tuple[Place, ...] = get_args(Place)
MAX_POINTS = 3


def _vector(seed: int, norm: float = 60.0) -> torch.Tensor:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(seed))
    return norm * vector / vector.norm()


def _steering(name: str) -> tuple[Controller, ...]:
    """One vector at the place of that name, or several actions at once."""
    if name == "both":
        everywhere = FixedVector("everywhere", 2, _vector(1))
        return everywhere, FixedVector("prompt_end", 4, _vector(2), 2.0)
    if name == "mixed":
        chosen = BasisController(
            bases.basis(), SimilaritySteering(strength=0.75), block=bases.BLOCK
        )
        return FixedVector("segment", 1, _vector(3)), chosen
    [place] = [place for place in PLACES if place == name]
    return (FixedVector(place, 3, _vector(1)),)


@pytest.fixture(scope="module")
def control(automaton: ControlPointAutomaton) -> ControlSpec:
    return ControlSpec(automaton, MAX_POINTS)


@pytest.mark.parametrize("name", [*PLACES, "both", "mixed"])
def test_engine_generate_and_one_pass_equal_rebuilding_every_prefix(
    name: str, loaded: LoadedModel, prompts: list[Prompt], control: ControlSpec
) -> None:
    steering, some = _steering(name), prompts[:3]
    sampling = SamplingParams(40, loaded.stop_token_ids)
    engine = DecodeEngine(loaded, max_rows=2)
    requests = [GenerationRequest(p) for p in some]
    result = engine.generate(requests, sampling, seed=0, control=control, controller=steering)
    slow = SlowSteering(loaded, control.automaton, steering, sampling, MAX_POINTS)
    assert [r.token_ids for r in result.rollouts] == [
        tuple(slow.run(p, r.token_ids)) for p, r in zip(some, result.rollouts, strict=True)
    ]
    assert _places(result.decisions) == _places(slow.decisions)
    plain = engine.generate(requests, sampling, seed=0, control=control)
    assert all(
        a.logprobs != b.logprobs for a, b in zip(result.rollouts, plain.rollouts, strict=True)
    )
    # Nothing costs a pass of its own: a prefill for the first token, then a pass a token.
    assert [r.forward_passes for r in result.rollouts] == [
        len(r.token_ids) for r in result.rollouts
    ]
    forced = teacher_force(loaded, result.rollouts, (1,), max_points=MAX_POINTS, steering=steering)
    for rollout, logprobs in zip(result.rollouts, forced.logprobs, strict=True):
        torch.testing.assert_close(torch.tensor(rollout.logprobs), logprobs, rtol=1e-3, atol=1e-3)
    # The user's own generate, a prompt at a time so that nothing is padded.
    for prompt, rollout in zip(some, result.rollouts, strict=True):
        with attached(loaded.model, steering, control) as decisions:
            output = loaded.model.generate(
                input_ids=torch.tensor([prompt.token_ids]), max_new_tokens=40, do_sample=False
            )
        assert tuple(output[0, len(prompt.token_ids) :].tolist()) == rollout.token_ids
        assert len(decisions) == sum(d.prompt_id == prompt.prompt_id for d in result.decisions)


def _places(decisions: Sequence[object]) -> set[tuple[object, ...]]:
    names = ("prompt_id", "point", "token_index", "block", "chosen", "place")
    return {tuple(getattr(decision, name) for name in names) for decision in decisions}


@pytest.mark.parametrize("place", PLACES)
def test_strength_0_is_plain_to_the_bit_and_a_vector_with_its_opposite_cancels(
    place: Place, loaded: LoadedModel, prompts: list[Prompt], control: ControlSpec
) -> None:
    requests = [GenerationRequest(p, k) for p in prompts[:2] for k in range(2)]
    sampling = SamplingParams(40, loaded.stop_token_ids, temperature=0.8)
    engine = DecodeEngine(loaded, max_rows=8)
    plain = engine.generate(requests, sampling, seed=0, control=control)
    nothing = FixedVector(place, 2, _vector(1), 0.0)
    still = engine.generate(requests, sampling, seed=0, control=control, controller=nothing)
    assert [(r.token_ids, r.logprobs, r.impulses) for r in still.rollouts] == [
        (r.token_ids, r.logprobs, ()) for r in plain.rollouts
    ]
    pair = (FixedVector(place, 2, _vector(1)), FixedVector(place, 2, _vector(1), -1.0))
    cancelled = engine.generate(requests, sampling, seed=0, control=control, controller=pair)
    assert [r.token_ids for r in cancelled.rollouts] == [r.token_ids for r in plain.rollouts]
    assert all(r.impulses for r in cancelled.rollouts if r.control_points)
    # Samples of a prompt share its prefill, and each has the decision in its own record.
    alone = [
        engine.generate([request], sampling, seed=0, control=control, controller=pair[:1])
        for request in requests
    ]
    together = engine.generate(requests, sampling, seed=0, control=control, controller=pair[:1])
    assert [r.token_ids for r in together.rollouts] == [m.rollouts[0].token_ids for m in alone]
    assert together.decisions == tuple(made for m in alone for made in m.decisions)


def test_held_vectors_are_recorded_once_and_leave_the_blocks_below_alone(
    loaded: LoadedModel, prompts: list[Prompt], automaton: ControlPointAutomaton
) -> None:
    engine, sampling = DecodeEngine(loaded, max_rows=8), SamplingParams(60, loaded.stop_token_ids)
    control = ControlSpec(automaton, MAX_POINTS, (1, 2, 3, 4))
    requests = [GenerationRequest(p) for p in prompts[:6]]
    plain = engine.generate(requests, sampling, seed=0, control=control)
    for place, num_records in (("everywhere", 1), ("every_token", 1), ("segment", MAX_POINTS)):
        steering = FixedVector(place, 3, _vector(1, 0.05))  # type: ignore[arg-type]
        held = engine.generate(requests, sampling, seed=0, control=control, controller=steering)
        for rollout in held.rollouts:
            assert len(rollout.impulses) == min(num_records, len(rollout.control_points) or 1)
            assert {i.place for i in rollout.impulses} == {place}
        assert plain.states is not None
        assert held.states is not None
        same = [
            (i, j)
            for i, a in enumerate(plain.states.labels)
            for j, b in enumerate(held.states.labels)
            if a == b and a.point == 1
        ]
        assert same
        before = plain.states.states[[i for i, _ in same]]
        after = held.states.states[[j for _, j in same]]
        assert torch.equal(before[:, :3], after[:, :3])  # read before anything is added in a block
        assert not torch.equal(before[:, 3], after[:, 3])


def test_a_continued_completion_goes_on_under_what_its_plan_holds(
    loaded: LoadedModel, prompts: list[Prompt], control: ControlSpec
) -> None:
    engine, sampling = DecodeEngine(loaded, max_rows=8), SamplingParams(40, loaded.stop_token_ids)
    vector = _vector(1)
    for place in ("everywhere", "every_token", "prompt_end"):
        steering = FixedVector(place, 3, vector)  # type: ignore[arg-type]
        whole = engine.generate(
            [GenerationRequest(p) for p in prompts[:4]],
            sampling,
            seed=0,
            control=control,
            controller=steering,
        ).rollouts
        planned = (PlannedImpulse(-1, 3, vector, place),)  # type: ignore[arg-type]
        continued = engine.generate(
            [
                GenerationRequest(p, 0, r.token_ids[:9], planned)
                for p, r in zip(prompts[:4], whole, strict=True)
            ],
            sampling,
            seed=0,
            control=control,
        ).rollouts
        assert [r.token_ids for r in continued] == [r.token_ids for r in whole]
    request = GenerationRequest(prompts[0], 0, whole[0].token_ids[:9])
    held = FixedVector("everywhere", 3, vector)
    with pytest.raises(StageError, match="plan what it held there"):
        engine.generate([request], sampling, seed=0, control=control, controller=held)


def test_what_plain_generate_cannot_follow_is_refused(
    loaded: LoadedModel, prompts: list[Prompt], control: ControlSpec
) -> None:
    model, ids = loaded.model, torch.tensor([prompts[0].token_ids])
    with attached(model, FixedVector("everywhere", 3, _vector(1)), control):
        with pytest.raises(StageError, match="use_cache=True"):
            model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, use_cache=False)
        first = model.generate(
            input_ids=ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
        )
        longer = torch.cat([first.sequences, ids], dim=1)
        with pytest.raises(StageError, match="a chat continued on its cache"):
            model.generate(
                input_ids=longer,
                past_key_values=first.past_key_values,
                max_new_tokens=4,
                do_sample=False,
            )
    made = model.generate(
        input_ids=ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )
    longer = torch.cat([made.sequences, ids[:, :1]], dim=1)
    with (
        attached(model, FixedVector("everywhere", 3, _vector(1)), control),
        pytest.raises(StageError, match="already holds"),
    ):
        model.generate(
            input_ids=longer,
            past_key_values=made.past_key_values,
            max_new_tokens=4,
            do_sample=False,
        )


def test_a_backend_is_opened_by_name_and_refuses_what_it_cannot_do(loaded: LoadedModel) -> None:
    backend = open_backend("transformers", loaded, Limits(max_rows=2))
    assert isinstance(backend, GenerationBackend)
    assert abilities_of(backend.name) == backend.abilities == frozenset(Ability)
    with pytest.raises(ConfigError, match="'other' is none of transformers"):
        open_backend("other", loaded, Limits(max_rows=2))
    needs = frozenset({Ability.ACT_AT_CONTROL_POINTS, Ability.PREVIEW})
    require_abilities("transformers", backend.abilities, needs, "mode preview")
    with pytest.raises(
        StageError, match=r"mode preview needs a backend that can .*preview.*=small"
    ):
        require_abilities("small", frozenset({Ability.STREAM}), needs, "mode preview")
