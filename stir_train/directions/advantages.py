"""What each rollout is worth beside the others of its problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stir_train.errors import StageError
from stir_train.types.rollout import GradedRollout

Reward = Callable[[GradedRollout], float]
"""Anything that is to rise; its scale is the scale of the first-order gains."""


def accuracy(item: GradedRollout) -> float:
    """1 for a correct completion, else 0."""
    return float(item.grade.correct)


def at_price(worth: Reward, price_per_token: float) -> Reward:
    """A reward minus a price for every token of the completion."""

    def reward(item: GradedRollout) -> float:
        return worth(item) - price_per_token * len(item.rollout.token_ids)

    return reward


def checked(function: Callable[[GradedRollout], object], *, name: str) -> Reward:
    """A function of the user's own as a reward.

    Its errors, and what is no finite number, become a `StageError` that names the function and the rollout.
    """

    def reward(item: GradedRollout) -> float:
        rollout = f"sample {item.rollout.sample} of problem {item.rollout.prompt_id}"
        try:
            value = function(item)
        except Exception as error:  # code that is not ours raises what it likes
            raise StageError(
                f"directions.reward: {name} failed on {rollout}: {type(error).__name__}: {error}"
            ) from error
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise StageError(
                f"directions.reward: {name} returned {value!r} for {rollout}, and should return a finite number"
            )
        return number

    return reward


@dataclass(frozen=True)
class Advantages:
    """Leave-one-out advantages ``A_i = R_i - mean of R over the problem's other rollouts``.

    The baseline does not depend on rollout ``i``, so it takes variance and no expectation away.

    Attributes:
        by_rollout: (prompt, sample) to advantage, of problems with unequal rewards: what has to be
            differentiated. All others have an advantage of 0.
        num_rollouts: All rollouts, those of problems with equal rewards included: the ``N`` of the
            estimate.
    """

    by_rollout: dict[tuple[str, int], float]
    num_rollouts: int

    def of(self, prompt_ids: Sequence[str], samples: Sequence[int]) -> list[float]:
        """The advantages of some rollouts, in their order."""
        keys = zip(prompt_ids, samples, strict=True)
        return [self.by_rollout.get(key, 0.0) for key in keys]


def leave_one_out(graded: Sequence[GradedRollout], reward: Reward = accuracy) -> Advantages:
    """Compare every rollout with the others of its problem; one without others is worth nothing."""
    rewards: dict[str, dict[int, float]] = {}
    for item in graded:
        rewards.setdefault(item.rollout.prompt_id, {})[item.rollout.sample] = reward(item)
    found: dict[tuple[str, int], float] = {}
    for prompt_id, of_samples in rewards.items():
        if len(set(of_samples.values())) < 2:
            continue
        total, others = sum(of_samples.values()), len(of_samples) - 1
        for sample, value in of_samples.items():
            found[prompt_id, sample] = value - (total - value) / others
    return Advantages(found, sum(map(len, rewards.values())))
