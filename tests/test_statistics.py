"""Intervals and tests: coverage on data whose truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stir_train.evals.intervals import (
    bootstrap_interval,
    describe_change,
    describe_interval,
    describe_method,
    mcnemar_p,
    ratio_change_interval,
)
from stir_train.evals.sampled import compare_samples, majority_is_right, pass_at
from stir_train.types.rollout import Grade, GradedRollout, Rollout


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    means, ratios, repeats = 0, 0, 300
    for _ in range(repeats):
        flips = rng.random(200) < 0.6
        low, high = bootstrap_interval(flips.astype(float).tolist(), num_resamples=400)
        means += low <= 0.6 <= high
        base = rng.gamma(5, 10, 200)
        method = 0.8 * base * rng.gamma(50, 1 / 50, 200)
        low, high = ratio_change_interval(base.tolist(), method.tolist(), num_resamples=400)
        ratios += low <= -0.2 <= high
    assert 0.90 <= means / repeats <= 0.98
    assert 0.90 <= ratios / repeats <= 0.98


def test_a_null_method_is_called_a_gain_at_most_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(1)
    gains = 0
    for _ in range(400):
        difference = (rng.random(150) < 0.6).astype(float) - (rng.random(150) < 0.6)
        gains += describe_interval(*bootstrap_interval(difference, num_resamples=400)) == "gain"
    assert gains / 400 <= 0.05


def test_mcnemar_is_the_exact_binomial() -> None:
    assert mcnemar_p(0, 0) == 1
    assert mcnemar_p(5, 5) == 1
    assert mcnemar_p(10, 0) == pytest.approx(2 / 2**10)
    assert mcnemar_p(9, 1) == pytest.approx(2 * 11 / 2**10)
    assert mcnemar_p(1, 9) == mcnemar_p(9, 1)


def test_intervals_are_repeatable_and_need_items() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert bootstrap_interval(values, num_resamples=50) == bootstrap_interval(
        values, num_resamples=50
    )
    assert bootstrap_interval([0.5] * 9, num_resamples=50) == (0.5, 0.5)
    with pytest.raises(ValueError, match="no items"):
        bootstrap_interval([], num_resamples=5)


def _sample(prompt: str, extracted: str, *, right: bool) -> GradedRollout:
    rollout = Rollout(prompt, 0, (1,), (2, 3), (0.0, 0.0), (), "stop")
    return GradedRollout(rollout, "", Grade(right, extracted, ""), float(right))


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one() -> None:
    for right in range(6):
        flags = [i < right for i in range(5)]
        for k in range(1, 6):
            draws = list(itertools.combinations(flags, k))
            assert pass_at(5, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_sampled_figures_of_a_method() -> None:
    steered = [
        *(_sample("a", x, right=x == "7") for x in ("7", "8", "7", "")),
        *(_sample("b", x, right=x == "5") for x in ("6", "5", "6", "5")),
    ]
    base = [
        *(_sample("a", x, right=x == "7") for x in ("7", "8", "8", "")),
        *(_sample("b", x, right=x == "5") for x in ("6", "6", "6", "6")),
    ]
    found = compare_samples("stir", steered, base, num_resamples=200)
    assert found.num_samples == 4
    assert found.average == pytest.approx(0.5)
    assert found.delta_average == pytest.approx((0.25 + 0.5) / 2)
    assert list(found.pass_at) == [1, 2, 4]
    assert found.pass_at[1] == pytest.approx(found.average)
    assert found.pass_at[4] == 1
    assert found.majority == pytest.approx(0.5), "ties go to the first: 6, wrong"
    assert not majority_is_right([_sample("c", "", right=False)])


def test_the_verdict_is_on_accuracy_first_and_then_on_length() -> None:
    nothing, up, down = (-0.01, 0.01), (0.02, 0.05), (-0.05, -0.02)
    assert describe_change(up, down) == describe_change(up, up) == "gain"
    assert describe_change(down, down) == "loss"
    assert describe_change(nothing, down) == "shorter"
    assert describe_change((0.0, 0.0), up) == "longer"
    assert describe_change(nothing, nothing) == "no effect"


def test_an_end_that_is_shown_as_zero_is_zero() -> None:
    nothing = (-0.01, 0.01)
    assert describe_change(nothing, (-0.1, -0.0004)) == "no effect"
    assert describe_change(nothing, (-0.1, -0.0006)) == "shorter"
    assert describe_change((0.0004, 0.02), nothing) == "no effect"
    assert describe_interval(0.0006, 0.02) == "gain"


def test_a_control_gains_without_something() -> None:
    nothing, up, down = (-0.01, 0.01), (0.02, 0.05), (-0.05, -0.02)
    assert describe_method("stir", up, down) == "gain"
    assert describe_method("control-shuffled-keys", up, down) == "gain without keys"
    assert describe_method("control-random-2", up, nothing) == "gain without vectors"
    assert describe_method("control-random-vectors", nothing, down) == "shorter"
