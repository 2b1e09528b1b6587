"""A gate that is open where a step is more uncertain than the ones before it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch

from stir_train.config.steering import SimilaritySteering
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.errors import StageError
from stir_train.generation.backend import (
    Ability,
    ControlSpec,
    GenerationRequest,
    SamplingParams,
    abilities_for,
)
from stir_train.generation.controller import ControlBatch, reads_uncertainty
from stir_train.generation.foresight import is_foreseeable
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.generation.uncertainty import (
    last_stands_out,
    next_momentum,
    stands_out,
    step_uncertainties,
)
from stir_train.models.load import LoadedModel
from stir_train.steering.controller import BasisController
from stir_train.types.places import Place
from stir_train.types.rollout import Prompt
from stir_train.types.steering import ControlBasis

WIDTH = 4
GATE = SimilaritySteering(strength=1.0, momentum_gate=0.9)


def test_a_step_is_its_tokens_with_the_one_that_ends_it() -> None:
    logprobs = [-1.0, -3.0, -4.0, -0.5, -0.5, -100.0]
    assert step_uncertainties(logprobs, (1, 2, 4)) == pytest.approx((2.0, 4.0, 0.5))
    assert step_uncertainties(logprobs, ()) == ()


def test_what_stands_out_is_compared_with_the_momentum_of_all_before() -> None:
    assert not stands_out(9.0, None, 0.9), "the first step never does"
    assert stands_out(1.2, 1.0, 0.9)
    assert not stands_out(1.05, 1.0, 0.9)
    assert next_momentum(1.0, 2.0) == pytest.approx(1.1)
    # The threshold of a third step: 0.9 * 1 + 0.1 * 2, and what gamma asks for.
    threshold = 1.1 - math.log(0.9)
    assert last_stands_out((1.0, 2.0, threshold + 1e-6), 0.9)
    assert not last_stands_out((1.0, 2.0, threshold - 1e-6), 0.9)
    assert not last_stands_out((5.0,), 0.9)


class _Listener:
    """Keeps what it is told, and adds nothing."""

    place: Place = "control_point"
    block = 3
    reads = (3,)
    reads_uncertainty = True

    def __init__(self) -> None:
        self.told: dict[tuple[str, int], tuple[float, ...]] = {}

    def decide(self, states: torch.Tensor, batch: ControlBatch) -> None:
        assert batch.uncertainties is not None
        for where, steps in zip(
            zip(batch.prompt_ids, batch.points.tolist(), strict=True),
            batch.uncertainties,
            strict=True,
        ):
            self.told[where] = steps


def test_decoding_tells_of_the_steps_that_it_has_recorded(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    greedy: SamplingParams,
) -> None:
    listener, engine = _Listener(), DecodeEngine(loaded, max_rows=3)
    assert Ability.TELL_UNCERTAINTY in abilities_for(listener)
    few, control = prompts[:6], ControlSpec(automaton, 8)
    requests = [GenerationRequest(prompt) for prompt in few]
    sampling = dataclasses.replace(greedy, max_new_tokens=64)
    made = engine.generate(requests, sampling, seed=0, control=control, controller=listener)
    expected = {
        (rollout.prompt_id, point): step_uncertainties(
            rollout.logprobs, rollout.control_points[:point]
        )
        for rollout in made.rollouts
        for point in range(1, len(rollout.control_points[:8]) + 1)
    }
    assert len(expected) > 6
    assert listener.told.keys() == expected.keys()
    for where, steps in expected.items():
        assert listener.told[where] == pytest.approx(steps, abs=1e-6)
    prefix = made.rollouts[0].token_ids[:2]
    with pytest.raises(StageError, match="from its beginning"):
        engine.generate(
            [GenerationRequest(few[0], 0, prefix)],
            sampling,
            seed=0,
            control=control,
            controller=listener,
        )


def _controller(settings: SimilaritySteering) -> BasisController:
    """Over one entry that is similar to every state below."""
    key = torch.zeros(1, WIDTH)
    key[0, 0] = 1.0
    basis = ControlBasis(
        keys=key,
        directions=key,
        blocks=torch.tensor([0]),
        points=torch.tensor([2]),
        quality=torch.ones(1),
        is_anchor=torch.tensor([False]),
        saves_tokens=torch.tensor([False]),
        contrast=torch.tensor([0]),
    )
    return BasisController(basis, settings, block=0)


def _batch(uncertainties: Sequence[tuple[float, ...]] | None) -> ControlBatch:
    number = 2 if uncertainties is None else len(uncertainties)
    return ControlBatch(
        ("a", "b")[:number],
        (0,) * number,
        torch.full((number,), 2),
        (5,) * number,
        None if uncertainties is None else tuple(uncertainties),
    )


def test_the_controller_acts_only_where_the_gate_is_open() -> None:
    states = torch.zeros(2, WIDTH)
    states[:, 0] = 1.0
    batch = _batch([(1.0, 2.0), (1.0, 0.5)])
    free = _controller(GATE.model_copy(update={"momentum_gate": None}))
    assert not reads_uncertainty(free)
    decision = free.decide(states, batch)
    assert decision is not None
    assert decision.fires.tolist() == [True, True]
    gated = _controller(GATE)
    assert reads_uncertainty(gated)
    # Greedy answers' states do not tell where it would first act.
    assert is_foreseeable(free, [0])
    assert not is_foreseeable(gated, [0])
    decision = gated.decide(states, batch)
    assert decision is not None
    assert decision.fires.tolist() == [True, False]
    assert not bool(decision.deltas[1].any())
    # Nothing is proposed there either, so that nothing is previewed.
    assert gated.propose(states, batch).valid.any(1).tolist() == [True, False]
    with pytest.raises(StageError, match="momentum_gate"):
        gated.decide(states, _batch(None))
