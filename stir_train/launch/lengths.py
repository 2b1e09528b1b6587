"""How long answers will be, from some of which a few were stopped before their end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SHAPES = np.linspace(1.0, 4.0, 61)
"""Of the Weibull distribution; 1 is the exponential, whose answers end no sooner for having gone on."""


def expected_lengths(
    lengths: Sequence[int], has_ended: Sequence[bool], *, budget: int
) -> tuple[int, ...]:
    """What each answer comes to, given that some were stopped.

    Lengths are taken to follow a Weibull distribution. It is fitted by maximum likelihood, in which those that were
    stopped, or cut off by the budget, are censored from the right. A stopped answer is given the mean of
    min(T, ``budget``) under T > its length so far.

    Args:
        lengths: Tokens so far, one or more each.
        has_ended: Whether the answer is at its end, by itself or by the budget.
        budget: Tokens that an answer can have.

    Returns:
        Tokens, in order; ``budget`` for all that were stopped where none has ended by itself.
    """
    seen, ended, by_itself = _arrays(lengths, has_ended, budget)
    if ended.all() or not by_itself.any():
        whole = np.where(ended, seen, budget)
        return tuple(int(length) for length in whole)
    shape, scale = _fit(seen, by_itself)
    return tuple(
        length if is_whole else round(_mean_from(length, shape, scale, budget))
        for length, is_whole in zip(lengths, has_ended, strict=True)
    )


def long_answer(
    lengths: Sequence[int], has_ended: Sequence[bool], *, budget: int, share: float
) -> int:
    """Tokens that a ``share`` of the answers exceeds, by the same distribution; arguments as of `expected_lengths`.

    Returns:
        At most ``budget``, which it is where no answer has ended by itself.
    """
    seen, _, by_itself = _arrays(lengths, has_ended, budget)
    if not by_itself.any():
        return budget
    shape, scale = _fit(seen, by_itself)
    return min(budget, math.ceil(scale * (-math.log(share)) ** (1 / shape)))


def _arrays(
    lengths: Sequence[int], has_ended: Sequence[bool], budget: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths, which are at their end, and which of these came to it by themselves."""
    seen, ended = np.asarray(lengths, dtype=float), np.asarray(has_ended, dtype=bool)
    return seen, ended, ended & (seen < budget)


def _fit(seen: np.ndarray, by_itself: np.ndarray) -> tuple[float, float]:
    """Shape and scale; for a shape k the likelihood is largest at scale^k = sum of t^k over the number that ended."""
    num_ended = int(by_itself.sum())
    powers = np.array([(seen**shape).sum() / num_ended for shape in SHAPES])
    log_likelihood = num_ended * (np.log(SHAPES) - np.log(powers))
    log_likelihood += (SHAPES - 1) * np.log(seen[by_itself]).sum()
    best = int(np.argmax(log_likelihood))
    return float(SHAPES[best]), float(powers[best] ** (1 / SHAPES[best]))


def _mean_from(length: int, shape: float, scale: float, budget: int) -> float:
    """Mean of min(T, budget) under T > length: its length, and the chance of each further token."""
    later = np.arange(length, budget)
    return float(length + np.exp((length / scale) ** shape - (later / scale) ** shape).sum())
