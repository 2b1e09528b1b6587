"""How long completions are, how many the token budget cuts off, and what budget would cut off few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MUCH_CUT_OFF = 0.05
"""Share of completions cut off from which the budget decides what is right and wrong."""
FEW_CUT_OFF = 0.02
"""What a proposed budget aims at."""
MOST_TIMES = 4
"""A guess from a tail that was cut off is not stretched further than this many budgets."""
STEP = 64
"""Proposals are multiples of this."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of completions under a budget.

    Attributes:
        count: Of completions.
        budget: Tokens at most, ``generation.max_new_tokens``.
        median, ninth_decile, longest: Of their lengths, in tokens; what was cut off counts as the budget.
        truncated_rate: Share that was cut off.
    """

    count: int
    budget: int
    median: int
    ninth_decile: int
    longest: int
    truncated_rate: float

    @property
    def proposed_budget(self) -> int | None:
        """A budget that would cut off about `FEW_CUT_OFF`; None if few are cut off now.

        The tail beyond the median is taken for exponential, since what lies beyond the budget is not seen.
        """
        if self.truncated_rate < MUCH_CUT_OFF:
            return None
        most = MOST_TIMES * self.budget
        if self.truncated_rate >= 0.5 or self.median >= self.budget:
            return most
        decay = math.log(0.5 / self.truncated_rate) / (self.budget - self.median)
        wanted = self.budget + math.log(self.truncated_rate / FEW_CUT_OFF) / decay
        return min(most, STEP * math.ceil(wanted / STEP))

    def __str__(self) -> str:
        """The median, ninth decile and maximum in tokens, and the share cut off, in words."""
        return (
            f"tokens: median {self.median}, 90 % up to {self.ninth_decile}, longest {self.longest}; "
            f"{self.truncated_rate:.1%} cut off"
        )

    @property
    def advice(self) -> str | None:
        """What to do about the budget; None if it cuts off few."""
        if self.proposed_budget is None:
            return None
        return (
            f"{self.truncated_rate:.1%} of {self.count} completions were cut off at "
            f"generation.max_new_tokens={self.budget}, and count as wrong: what is learned and compared is then "
            f"partly who fits into the budget. By the lengths of the others about {self.proposed_budget} would "
            "cut off few"
        )


def measure_lengths(
    num_tokens: Sequence[int], truncated: Sequence[bool], *, budget: int
) -> Lengths:
    """Lengths of completions; there must be some."""
    ordered = sorted(num_tokens)
    return Lengths(
        count=len(ordered),
        budget=budget,
        median=ordered[(len(ordered) - 1) // 2],
        ninth_decile=ordered[math.ceil(0.9 * len(ordered)) - 1],
        longest=ordered[-1],
        truncated_rate=sum(truncated) / len(ordered),
    )
