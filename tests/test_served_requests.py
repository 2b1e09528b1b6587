"""What of serving needs no vLLM: what requests may ask for, and the passes that they share."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stir_train.config.steering import (
    NoSteering,
    SteeringConfig,
    ValueSteering,
    VectorAction,
    VectorSteering,
)
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.errors import ConfigError
from stir_train.generation.backend import ControlSpec
from stir_train.generation.fixed import FixedVector
from stir_train.generation.vllm.served import STRENGTH, refusal, strength_of
from stir_train.generation.vllm.served_runner import ServedRunner
from stir_train.generation.vllm.track import first_asked
from stir_train.steering.served import scaled
from stir_train.types.places import Place

POINT, OTHER, WIDTH, BLOCK = 5, 6, 4, 1


@pytest.mark.parametrize(
    ("given", "has_adapter", "steers", "strength"),
    [
        (None, False, True, 1.0),
        ({STRENGTH: 0}, False, True, 0.0),
        ({STRENGTH: 2.5}, False, True, 2.5),
        ({"another_plugin": "x"}, False, True, 1.0),
        (None, True, True, 0.0),
        ({STRENGTH: 0}, True, True, 0.0),
        ({STRENGTH: 0}, False, False, 0.0),
    ],
)
def test_what_a_request_may_ask_for(
    given: dict[str, Any] | None, has_adapter: bool, steers: bool, strength: float
) -> None:
    assert refusal(given, has_adapter=has_adapter, steers=steers, is_beam=False) is None
    assert strength_of(given, has_adapter=has_adapter) == strength


@pytest.mark.parametrize(
    ("given", "has_adapter", "steers", "is_beam", "why"),
    [
        ({STRENGTH: -1}, False, True, False, "expected a number from 0"),
        ({STRENGTH: 1e9}, False, True, False, "expected a number from 0"),
        ({STRENGTH: float("nan")}, False, True, False, "expected a number from 0"),
        ({STRENGTH: "off"}, False, True, False, "got 'off'"),
        ({"steering_strenght": 1}, False, True, False, "did you mean steering_strength"),
        ({STRENGTH: 1}, True, True, False, "served as it was evaluated"),
        ({STRENGTH: 1}, False, False, False, "chose not to steer"),
        (None, False, True, True, "beams are fed as prompts"),
    ],
)
def test_what_is_refused_says_why(
    given: dict[str, Any] | None, has_adapter: bool, steers: bool, is_beam: bool, why: str
) -> None:
    said = refusal(given, has_adapter=has_adapter, steers=steers, is_beam=is_beam)
    assert said is not None
    assert why in said


@pytest.mark.parametrize(
    ("places", "first"),
    [
        ((), None),
        (("control_point",), 7),
        (("segment",), 7),
        (("control_point", "prompt_end"), 6),
        (("everywhere",), 6),
        (("control_point", "every_token"), 0),
    ],
)
def test_blocks_are_shared_up_to_what_may_be_steered(
    places: tuple[Place, ...], first: int | None
) -> None:
    assert first_asked(places, num_prompt=7) == first


def test_strengths_are_relative_to_the_runs_own() -> None:
    value = ValueSteering(depth=0.5, strength=3.0, margin=-1.0)
    assert scaled(value, 2.0) == value.model_copy(update={"strength": 6.0})
    assert scaled(value, 1.0) is value
    vector = VectorSteering(
        actions=tuple(
            VectorAction(place=place, depth=0.5, strength=norm)
            for place, norm in (("prompt_end", 4.0), ("everywhere", 1.0))
        )
    )
    halved = scaled(vector, 0.5)
    assert isinstance(halved, VectorSteering)
    assert [action.strength for action in halved.actions] == [2.0, 0.5]
    none: SteeringConfig = NoSteering(depth=0.5)
    with pytest.raises(ConfigError, match="no strength"):
        scaled(none, 2.0)


class Fake:
    """As much of vLLM's runner as we look at: its passes add nothing to states of zeros."""

    def __init__(self, requests: dict[str, tuple[list[int], float | None, bool]]) -> None:
        self.device = torch.device("cpu")
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.requests = {
            name: SimpleNamespace(
                prompt_token_ids=prompt,
                sampling_params=SimpleNamespace(
                    extra_args=None if strength is None else {STRENGTH: strength}
                ),
                lora_request=object() if has_adapter else None,
            )
            for name, (prompt, strength, has_adapter) in requests.items()
        }
        self.input_batch: Any = None
        self.query_start_loc: Any = None

    def _model_forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden, residual = torch.zeros(2, len(input_ids), WIDTH)
        for block in self.blocks:
            hidden, residual = block(hidden, residual)
        return hidden + residual

    def _update_states(self, scheduler_output: Any) -> None:
        for name in scheduler_output.finished_req_ids:
            self.requests.pop(name, None)

    def feed(self, parts: Sequence[tuple[str, int, list[int]]]) -> dict[str, list[float]]:
        """A pass over (request, first position, tokens) each; what was added at each token."""
        lengths = [len(tokens) for _, _, tokens in parts]
        starts = np.cumsum([0, *lengths])
        self.query_start_loc = SimpleNamespace(np=starts)
        self.input_batch = SimpleNamespace(
            num_reqs=len(parts),
            req_ids=[name for name, _, _ in parts],
            num_computed_tokens_cpu=np.array([first for _, first, _ in parts]),
        )
        # Padded, as vLLM pads its passes.
        ids = torch.tensor([t for _, _, tokens in parts for t in tokens] + [0, 0])
        states = self._model_forward(ids, torch.zeros_like(ids))[:, 0].tolist()
        assert states[-2:] == [0, 0]
        return {name: states[starts[i] : starts[i + 1]] for i, (name, _, _) in enumerate(parts)}

    def finish(self, *names: str) -> None:
        self._update_states(SimpleNamespace(finished_req_ids=set(names)))


class Block(nn.Module):
    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden, residual


class Steering:
    """Adds its strength where it acts."""

    def __init__(self, place: Place) -> None:
        completes = torch.zeros(1, 10, dtype=torch.bool)
        completes[0, POINT] = True
        automaton = ControlPointAutomaton(torch.zeros(1, 10, dtype=torch.long), completes)
        self.control = ControlSpec(automaton, 8)
        self._place: Place = place

    def controllers(self, strength: float) -> tuple[FixedVector, ...]:
        return (FixedVector(self._place, BLOCK, torch.ones(WIDTH), strength),)


def _served(
    place: Place, requests: dict[str, tuple[list[int], float | None, bool]]
) -> tuple[Fake, list[str]]:
    fake, said = Fake(requests), []
    ServedRunner(fake, fake.blocks, Steering(place), said.append)
    return fake, said


def test_each_request_of_a_pass_has_its_own_strength() -> None:
    prompt = [1, POINT, 3]
    fake, said = _served(
        "control_point",
        {
            "as chosen": (prompt, None, False),
            "twice": (prompt, 2.0, False),
            "off": (prompt, 0.0, False),
            "student": (prompt, None, True),
        },
    )
    added = fake.feed([(name, 0, prompt) for name in fake.requests])
    assert set(map(tuple, added.values())) == {(0, 0, 0)}, "prompts are nobody's"
    added = fake.feed([(name, 3, [POINT]) for name in reversed(fake.requests)])
    assert added == {"as chosen": [1], "twice": [2], "off": [0], "student": [0]}
    added = fake.feed([(name, 4, [OTHER]) for name in fake.requests])
    assert set(map(tuple, added.values())) == {(0,)}
    fake.finish("twice", "off")
    assert said == [
        "request twice: strength 2, 1 control points, 1 decisions, 1 interventions "
        "(1 at control_point in block 1)"
    ]


@pytest.mark.parametrize("place", ["control_point", "segment", "everywhere", "every_token"])
def test_a_request_that_is_fed_again_is_steered_as_before(place: Place) -> None:
    """After a preemption; its twin goes on beside it, and another takes its row in between."""
    prompt = [1, 2]
    fake, _ = _served(place, {name: (prompt, 3.0, False) for name in ("a", "b", "c")})
    tokens = [*prompt, POINT, OTHER, POINT]
    once = fake.feed([("a", 0, prompt), ("b", 0, prompt)])
    whole = list(once["b"])
    for position in (2, 3):
        fed = [tokens[position]]
        made = fake.feed([("a", position, fed), ("b", position, fed)])
        whole += made["b"]
    fake.feed([("c", 0, prompt), ("b", 4, [POINT])])
    again = fake.feed([("c", 2, [OTHER]), ("a", 0, tokens[:4])])
    assert again["a"] == whole


def test_a_name_that_comes_again_is_another_request() -> None:
    fake, said = _served("prompt_end", {"a": ([1, 2], 1.0, False)})
    state = fake.requests["a"]
    assert fake.feed([("a", 0, [1, 2])]) == {"a": [0, 1]}
    fake.finish("a")
    fake.requests["a"] = state
    assert fake.feed([("a", 0, [1, 2])]) == {"a": [0, 1]}
    fake.finish("a")
    assert len(said) == 2
