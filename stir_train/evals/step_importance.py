"""How much a step of a completion matters: what answers come of it, with it and without.

Thought anchors by resampling (arXiv 2506.19143): a completion is cut before a step and after it and continued from
both cuts many times; the step is as important as the answers move. The paper samples 100 continuations, and compares
distributions of answers by their divergence (of counterfactual steps by meaning alone). Ours: as many as are asked for; accuracy
with a score interval, which stays honest where few samples agree; and the total variation between the answers,
beside what it would be by chance, since the distance of two finite samples of one distribution is not zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

INTERVAL_Z = 1.959964
"""Of 95 %."""
NUM_SPLITS = 200
"""Random splits that say what a distance is by chance."""


@dataclass(frozen=True)
class Resampled:
    """How the continuations from one cut ended.

    Attributes:
        correct: Of each, whether it is right.
        answers: Of each, the answer that the grader read; empty where there is none.
    """

    correct: tuple[bool, ...]
    answers: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """Share of right ones."""
        return sum(self.correct) / len(self.correct)


@dataclass(frozen=True)
class StepImportance:
    """What a step moves.

    Attributes:
        gain: Accuracy after the step less accuracy before it.
        low, high: 95 % interval of the gain.
        moved: Total variation between the answers before and after: 0 for the same, 1 for others throughout.
        by_chance: What it is on average between halves of all these answers, whichever cut they are from.
    """

    gain: float
    low: float
    high: float
    moved: float
    by_chance: float


def step_importance(before: Resampled, after: Resampled) -> StepImportance:
    """Compare the continuations from before a step with those from after it."""
    low, high = difference_interval(before.correct, after.correct)
    everything, half = np.array([*before.answers, *after.answers]), len(before.answers)
    generator, distances = np.random.default_rng(0), []
    for _ in range(NUM_SPLITS):
        mixed = generator.permutation(everything)
        distances.append(total_variation(mixed[:half].tolist(), mixed[half:].tolist()))
    return StepImportance(
        after.accuracy - before.accuracy,
        low,
        high,
        total_variation(before.answers, after.answers),
        sum(distances) / NUM_SPLITS,
    )


def total_variation(one: Sequence[str], other: Sequence[str]) -> float:
    """Half the summed difference of the shares of every answer."""
    first, second = Counter(one), Counter(other)
    return sum(abs(first[a] / len(one) - second[a] / len(other)) for a in first | second) / 2


def difference_interval(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float]:
    """95 % interval of a difference of shares, from Wilson's interval of each (Newcombe's hybrid score).

    It has a width where every sample agrees, which a bootstrap has not.
    """
    (p, p_low, p_high), (q, q_low, q_high) = (_wilson(sample) for sample in (before, after))
    gain = q - p
    return (
        gain - math.hypot(q - q_low, p_high - p),
        gain + math.hypot(q_high - q, p - p_low),
    )


def _wilson(sample: Sequence[bool]) -> tuple[float, float, float]:
    """A share with its 95 % score interval."""
    count, share, z = len(sample), sum(sample) / len(sample), INTERVAL_Z
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    half = z * spread / (1 + z * z / count)
    return share, centre - half, centre + half
