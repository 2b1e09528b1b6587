"""Paired statistics on the same items: bootstrap intervals, McNemar's exact test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

LEVEL = 0.95
SHOWN_DIGITS = 3
"""Of a fraction: tenths of a percent, or of a point."""
CONTROLS_LACK = {
    "control-empty-basis": "basis",
    "control-random": "vectors",
    "control-shuffled-keys": "keys",
    "control-shuffled-rewards": "rewards",
    "control-mean-difference": "gradients",
}
"""What of the method a control lacks, by what its name starts with."""
_BLOCK = 500


def bootstrap_interval(
    values: Sequence[float], *, num_resamples: int, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of per-item values, 95 %.

    For a paired comparison pass the per-item differences.
    """
    means = _resampled_means(np.asarray(values, dtype=np.float64)[None], num_resamples, seed)[0]
    return _percentiles(means)


def ratio_change_interval(
    baseline: Sequence[float], method: Sequence[float], *, num_resamples: int, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of ``mean(method) / mean(baseline) - 1`` over paired resamples, 95 %."""
    both = np.stack([np.asarray(baseline, np.float64), np.asarray(method, np.float64)])
    means = _resampled_means(both, num_resamples, seed)
    return _percentiles(means[1] / means[0] - 1)


def mcnemar_p(wins: int, losses: int) -> float:
    """Two-sided exact McNemar test: could ``wins`` against ``losses`` be a fair coin's?"""
    total = wins + losses
    if total == 0:
        return 1.0
    tail = sum(math.comb(total, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)


def describe_interval(low: float, high: float) -> str:
    """Whether an interval of fractions clears zero as it is shown: ``gain``, ``loss`` or ``no effect``.

    Figures are shown in tenths of a percent: an end that rounds to zero there is zero.
    """
    if round(low, SHOWN_DIGITS) > 0:
        return "gain"
    return "loss" if round(high, SHOWN_DIGITS) < 0 else "no effect"


def describe_change(
    accuracy: tuple[float, float] | list[float], tokens: tuple[float, float] | list[float]
) -> str:
    """The verdict on a method, from the 95 % intervals of its differences from greedy decoding.

    ``gain`` or ``loss`` of accuracy; where neither is clear, ``shorter`` or ``longer``; or ``no effect``.
    """
    word = describe_interval(*accuracy)
    if word != "no effect":
        return word
    return {"gain": "longer", "loss": "shorter"}.get(describe_interval(*tokens), word)


def describe_method(
    name: str,
    accuracy: tuple[float, float] | list[float],
    tokens: tuple[float, float] | list[float],
) -> str:
    """The verdict on a named method; a control's gain says without what, as in ``gain without keys``."""
    word = describe_change(accuracy, tokens)
    lacking = next((what for start, what in CONTROLS_LACK.items() if name.startswith(start)), "")
    return f"{word} without {lacking}" if lacking and word == "gain" else word


def _resampled_means(
    values: Float[NDArray[np.float64], "S N"], num_resamples: int, seed: int
) -> Float[NDArray[np.float64], "S R"]:
    """Means of the same resampled items for every series."""
    if values.shape[1] == 0:
        raise ValueError("no items to resample")
    rng = np.random.default_rng(seed)
    count = values.shape[1]
    parts = []
    for start in range(0, num_resamples, _BLOCK):
        index = rng.integers(count, size=(min(_BLOCK, num_resamples - start), count))
        parts.append(values[:, index].mean(-1))
    return np.concatenate(parts, axis=1)


def _percentiles(means: NDArray[np.float64]) -> tuple[float, float]:
    edge = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [edge, 100 - edge])
    return float(low), float(high)
