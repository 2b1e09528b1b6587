"""What the embedded families share: authors with habits, and openings that half give them away."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

AUTHORS = ("quiz", "homework", "exam", "blog", "forum", "notes")
AUTHOR_WEIGHTS = (2, 2, 3, 3, 2, 2)

Pace = Literal["slow", "quick"]


@dataclass(frozen=True)
class Openings:
    """The sentence a solution begins with: it announces the habit, says nothing, or misleads."""

    slow: str
    quick: str
    neutral: str
    p_matches: float = 0.72
    p_neutral: float = 0.20

    def draw(self, pace: Pace, rng: random.Random) -> str:
        """Draw an opening for a solution that begins at ``pace``."""
        announced = {"slow": self.slow, "quick": self.quick}
        value = rng.random()
        if value < self.p_matches:
            return announced[pace]
        if value < self.p_matches + self.p_neutral:
            return self.neutral
        return announced[other(pace)]


def by_author(*probabilities: float) -> Mapping[str, float]:
    """Name one probability per author, in the order of ``AUTHORS``."""
    return dict(zip(AUTHORS, probabilities, strict=True))


def draw_author(rng: random.Random) -> str:
    """Draw who writes the next solution."""
    return rng.choices(AUTHORS, AUTHOR_WEIGHTS)[0]


def draw_pace(p_slow: float, rng: random.Random) -> Pace:
    """Draw the pace of a solution, slow with probability ``p_slow``."""
    return "slow" if rng.random() < p_slow else "quick"


def other(pace: Pace) -> Pace:
    """The opposite habit."""
    return "quick" if pace == "slow" else "slow"
