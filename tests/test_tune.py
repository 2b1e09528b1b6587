"""Tuning: who is given up, who is chosen, and when nobody is."""

from __future__ import annotations

import dataclasses

import pytest

from stir_train.answering.methods import settings_label
from stir_train.config.run import RunConfig
from stir_train.config.stages import TuneConfig
from stir_train.config.steering import (
    JudgedSteering,
    SteeringConfig,
    ValueSteering,
    VectorAction,
    VectorSteering,
)
from stir_train.evals.choice import choose
from stir_train.evals.metrics import compare_to_baseline
from stir_train.evals.verdict import describe_passed_over
from stir_train.types.results import MethodMetrics, SteeringTrial
from stir_train.types.rollout import Grade, GradedRollout, Rollout
from stir_train.types.utility import Utility

BUDGET = 100


def _answers(correct: list[bool], tokens: int) -> list[GradedRollout]:
    return [
        GradedRollout(
            Rollout(f"p{i}", 0, (1,), tuple(range(tokens)), (0.0,) * tokens, (), "stop"),
            "",
            Grade(right, "", ""),
            0.0,
        )
        for i, right in enumerate(correct)
    ]


def _trial(strength: float, correct: list[bool], tokens: int, greedy: list[bool]) -> SteeringTrial:
    metrics = compare_to_baseline(
        f"value-{strength}",
        _answers(correct, tokens),
        _answers(greedy, 50),
        num_resamples=2000,
        utility=Utility(0.5, BUDGET),
    )
    return SteeringTrial(ValueSteering(strength=strength, depth=0.6), metrics, len(correct))


def test_the_most_useful_setting_without_a_likely_loss_is_chosen() -> None:
    greedy = [True] * 200 + [False] * 100
    safe = _trial(1.0, [True] * 230 + [False] * 70, 50, greedy)
    short_but_worse = _trial(2.0, [False] * 4 + [True] * 196 + [False] * 100, 20, greedy)
    useless = _trial(3.0, greedy, 60, greedy)
    assert short_but_worse.metrics.utility > safe.metrics.utility
    everything = [safe, short_but_worse, useless]
    base = ValueSteering(depth=0.6)

    def chosen(trials: list[SteeringTrial], max_accuracy_loss: float) -> SteeringConfig:
        found, passed_over = choose(
            trials, base, max_accuracy_loss=max_accuracy_loss, against=_never_asked
        )
        assert passed_over is None
        return found

    assert chosen(everything, 0.01) == safe.settings
    assert chosen(everything, 0.05) == short_but_worse.settings
    assert chosen([useless], 0.01).mode == "none"
    # One loss in 300 could be one in a hundred, not more; three could.
    one = _trial(4.0, [False] + [True] * 199 + [False] * 100, 40, greedy)
    three = _trial(5.0, [False] * 3 + [True] * 197 + [False] * 100, 40, greedy)
    assert one.is_gain(0.01)
    assert not three.is_gain(0.01)


def _never_asked(_one: SteeringTrial, _other: SteeringTrial) -> MethodMetrics:
    raise AssertionError("there is no fixed vector to compare with")


@pytest.mark.parametrize(
    ("num_more", "is_deployed"), [(3, False), (30, True)], ids=["not clearly", "clearly"]
)
def test_a_controller_that_decides_must_beat_the_best_fixed_vector_by_the_interval(
    num_more: int, is_deployed: bool
) -> None:
    greedy = [True] * 100 + [False] * 100
    held, more = [True] * 150 + [False] * 50, [True] * (150 + num_more) + [False] * (50 - num_more)
    vector = VectorSteering(actions=(VectorAction(place="every_token", depth=0.6, strength=1.0),))
    fixed = dataclasses.replace(_trial(1.0, held, 50, greedy), settings=vector)
    weak = dataclasses.replace(
        _trial(1.0, [True] * 140 + [False] * 60, 50, greedy),
        settings=vector.model_copy(update={"actions": vector.actions * 2}),
    )
    decides = _trial(2.0, more, 50, greedy)
    asked = []

    def against(one: SteeringTrial, other: SteeringTrial) -> MethodMetrics:
        asked.append((one, other))
        return compare_to_baseline(
            "decides",
            _answers(more, 50),
            _answers(held, 50),
            num_resamples=2000,
            utility=Utility(0.5, BUDGET),
        )

    chosen, passed_over = choose(
        [weak, fixed, decides], ValueSteering(depth=0.6), max_accuracy_loss=0.01, against=against
    )
    assert asked == [(decides, fixed)]
    assert chosen == (decides.settings if is_deployed else fixed.settings)
    assert (passed_over is None) == is_deployed
    if passed_over is not None:
        assert passed_over.settings == decides.settings
        said = describe_passed_over(passed_over)
        assert said.startswith("A fixed vector is deployed, since decides is not clearly better")
        assert "+1.5 [" in said


def test_every_setting_of_a_grid_is_tried_once_under_a_name_of_its_own() -> None:
    config = RunConfig(
        name="grid",
        tune=TuneConfig(
            modes=("value", "hybrid", "preview"),
            strengths=(1.0, 1.5),
            depths=(0.6, 0.8),
            doubts=(1.0, 2.0),
            margins=(0.0, 0.005),
            candidates=(4, 16),
        ),
    )
    grid = config.tried_settings
    assert len(grid) == 2 * (2 * 2 * 2 * 2 * 2) + 2 * 2
    assert len({settings_label(settings) for settings in grid}) == len(grid)
    # More candidates than the nearest entries could not be offered.
    assert {(s.num_candidates, s.num_nearest) for s in grid if isinstance(s, JudgedSteering)} == {
        (4, 8),
        (16, 32),
    }
    assert {s.num_candidates for s in grid if s.mode == "preview"} == {4}


def test_a_mode_takes_over_what_it_shares_with_the_given_one() -> None:
    given = ValueSteering(strength=2.0, num_nearest=5, doubt=7.0, max_strength=3.0)
    config = RunConfig(
        name="grid", steering=given, tune=TuneConfig(modes=("hybrid", "preview", "static"))
    )
    by_mode = {settings.mode: settings.model_dump() for settings in config.tried_settings}
    assert by_mode["hybrid"]["max_strength"] == by_mode["preview"]["max_strength"] == 3.0
    assert by_mode["preview"]["num_nearest"] == 5
    assert set(by_mode["static"]) == {"mode", "depth", "strength"}
    assert len(config.tried_settings) == 3 * (3 * 2 * 2 + 3 + 3)
