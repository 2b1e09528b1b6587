"""Intervals and tests: coverage on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from stir_train.evals.compare import (
    bootstrap_interval,
    describe_interval,
    mcnemar_p,
    ratio_change_interval,
)


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
