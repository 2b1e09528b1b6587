"""How much states say of whether their completions end right: a kernel estimate of dependence.

MI peaks (arXiv 2506.02867) are tokens at which the states and the gold answer have much mutual information, estimated by
the Hilbert-Schmidt independence criterion (HSIC) with Gaussian kernels. The published code compares the state of one token with
that of one gold answer and takes their dimensions for samples; nothing can be learned from one pair about dependence
over completions. Ours: samples are completions, at one control point each; the other side is whether they end
right; what the problem says of both is taken off first; and the value, normalised to 0 to 1, stands beside what it is where
outcomes are exchanged between completions of one problem, which gives a p-value at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

NUM_EXCHANGES = 999
MIN_OF_EACH = 3
"""Right and wrong completions below which nothing is said."""


@dataclass(frozen=True)
class Dependence:
    """Between states at one control point and how completions end.

    Attributes:
        value: HSIC over its largest possible value: 0 is independent, 1 is determined.
        by_chance: Its mean where outcomes are exchanged within problems.
        p_value: Share of exchanges that reach the value, the observed one counted.
        num_states: Completions of problems that ended both right and wrong.
        num_problems: Such problems.
    """

    value: float
    by_chance: float
    p_value: float
    num_states: int
    num_problems: int


def outcome_dependence(
    states: Float[NDArray[np.float32], "N D"],
    right: Bool[NDArray[np.bool_], "N"],
    problems: Sequence[str],
    *,
    seed: int = 0,
) -> Dependence | None:
    """Estimate the dependence of states and outcomes within problems; None if too few ended either way.

    Args:
        states: One a completion.
        right: Whether it ended right.
        problems: Which problem each completion is of.
        seed: Of the exchanges.
    """
    rows: dict[str, list[int]] = {}
    for row, problem in enumerate(problems):
        rows.setdefault(problem, []).append(row)
    groups = [np.array(some) for some in rows.values() if 0 < right[some].sum() < len(some)]
    num_right = sum(int(right[some].sum()) for some in groups)
    num_states = sum(map(len, groups))
    if min(num_right, num_states - num_right) < MIN_OF_EACH:
        return None
    within = [states[some].astype(np.float64) for some in groups]
    signs = [right[some].astype(np.float64) for some in groups]
    outcome = np.concatenate([some - some.mean() for some in signs])
    kernel = _centred_kernel(np.concatenate([some - some.mean(0) for some in within]))
    # With a linear kernel of outcomes y, HSIC is y' K y, at most |K| |y|^2.
    largest = float(np.linalg.norm(kernel) * (outcome**2).sum())
    if largest == 0:
        return None  # states that are all the same
    generator, ends = np.random.default_rng(seed), np.cumsum([len(some) for some in groups])[:-1]
    parts = np.split(outcome, ends)
    draws = np.stack(
        [
            np.concatenate([generator.permutation(part) for part in parts])
            for _ in range(NUM_EXCHANGES)
        ]
    )
    chance = ((draws @ kernel) * draws).sum(1) / largest
    value = float(outcome @ kernel @ outcome) / largest
    reached = int((chance >= value - 1e-12).sum())
    return Dependence(
        value, float(chance.mean()), (1 + reached) / (1 + NUM_EXCHANGES), num_states, len(groups)
    )


def _centred_kernel(states: Float[NDArray[np.float64], "N D"]) -> Float[NDArray[np.float64], "N N"]:
    """Gaussian, as wide as the median distance between states; its rows and columns sum to 0."""
    lengths = (states**2).sum(1)
    squared = np.maximum(lengths[:, None] + lengths - 2 * states @ states.T, 0)
    width = float(np.median(squared[np.triu_indices(len(states), 1)]))
    if width <= 1e-12 * float(lengths.max(initial=0)):
        return np.zeros_like(squared)
    kernel = np.exp(-squared / (2 * width))
    kernel -= kernel.mean(0)
    kernel -= kernel.mean(1, keepdims=True)
    return kernel
