"""Which vectors tuning tries: blocks by what a share of their states' norm gains, places alone and in pairs."""

from __future__ import annotations

import dataclasses

import pytest

from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.directions.estimate import anything_to_steer
from stir_train.directions.grid import vector_grid
from stir_train.errors import ConfigError
from stir_train.types.reports import DirectionEstimate
from tests.support.smoke import SMOKE


def _row(block: int, place: str, gain: float) -> DirectionEstimate:
    return DirectionEstimate(block, place, gain, gain, 0.5, 0.0, 0.0, 0.005, 0.005, 10.0)  # type: ignore[arg-type]


def test_the_grid_takes_each_places_best_block_alone_and_in_pairs() -> None:
    passing = [_row(2, "everywhere", 3.0), _row(1, "prompt_end", 2.0), _row(1, "everywhere", 1.0)]
    shares = {"prompt_end": (0.2, 0.5), "every_token": (0.1,), "control_point": (0.4,)}
    grid = vector_grid(passing, shares, {1: 0.3, 2: 0.6})  # type: ignore[arg-type]
    tried = [[(a.place, a.depth, a.strength) for a in one.actions] for one in grid]
    low, high, held = ("prompt_end", 0.3, 2.0), ("prompt_end", 0.3, 5.0), ("every_token", 0.6, 1.0)
    assert tried == [[low], [high], [held], [low, held], [high, held]]
    assert vector_grid([], shares, {}) == []  # type: ignore[arg-type]


def test_blocks_are_ranked_by_what_a_share_of_their_states_norm_gains() -> None:
    """A vector of .05 of the norm gains 1.5 at the first block, and 2 at the second, whose states are twice as long."""
    short, long = (
        _row(1, "everywhere", 3.0),
        dataclasses.replace(_row(2, "everywhere", 2.0), state_norm=20.0),
    )
    assert anything_to_steer([short, long]) == [long, short]
    [alone] = vector_grid([long, short], {"every_token": (0.05,)}, {1: 0.3, 2: 0.6})
    assert [(a.depth, a.strength) for a in alone.actions] == [(0.6, 1.0)]


def test_directions_are_estimated_where_some_vector_may_act() -> None:
    given = '{"mode": "vector", "actions": [{"place": "segment", "depth": 0.6, "strength": 2}]}'

    def load(*changed: str) -> RunConfig:
        return load_config(RunConfig, SMOKE, list(changed))

    assert load(f"steering={given}", "tune.enabled=false").estimated_places == ("segment",)
    assert load(f"steering={given}").estimated_places == (), "they never act"
    held = "evaluate.variants={end: {actions: [{place: control_point, depth: 0.6, strength: 1}]}}"
    varied = load("tune={modes: [vector], vectors: {every_token: [0.1], prompt_end: [1]}}", held)
    assert varied.estimated_places == ("prompt_end", "control_point", "everywhere")
    with pytest.raises(ConfigError, match=r"directions.step_norms: later steps"):
        load("tune={modes: [vector], vectors: {segment: [0.1]}}", "directions.num_steps=2")
