"""How uncertain the steps of a completion were, and which stand out of those before (MUR, arXiv 2507.14958).

The paper's: a step's uncertainty ``m`` is the mean negative log-probability of its tokens; their momentum average
is ``M <- alpha M + (1 - alpha) m``, alpha 0.9; a step stands out where ``exp(m) > exp(M) / gamma``. Ours: a step
ends at a control point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

ALPHA = 0.9


def step_uncertainties(
    logprobs: Sequence[float], control_points: Sequence[int]
) -> tuple[float, ...]:
    """Mean negative log-probability (nats) of the tokens of every step, the one that ends it included.

    Args:
        logprobs: Of a completion's tokens, as far as the last control point at least.
        control_points: Indices of the tokens that end steps, ascending.
    """
    return tuple(
        -math.fsum(logprobs[last + 1 : end + 1]) / (end - last)
        for last, end in pairwise((-1, *control_points))
    )


def next_momentum(momentum: float | None, uncertainty: float) -> float:
    """The average with one more step in it; the first step's own where there is none."""
    return uncertainty if momentum is None else ALPHA * momentum + (1 - ALPHA) * uncertainty


def stands_out(uncertainty: float, momentum: float | None, gamma: float) -> bool:
    """Whether a step is more uncertain than those before it; the first never is."""
    return momentum is not None and uncertainty > momentum - math.log(gamma)


def last_stands_out(uncertainties: Sequence[float], gamma: float) -> bool:
    """Whether the last of a completion's steps so far stands out of the others."""
    *before, last = uncertainties
    momentum: float | None = None
    for uncertainty in before:
        momentum = next_momentum(momentum, uncertainty)
    return stands_out(last, momentum, gamma)
