"""Successive halving: everything is tried on few problems, the better half of it on more.

The search knows neither a model nor files: it asks for utilities, and says who was given up when. A
measure that only reads recorded answers therefore retraces a search that was made before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Candidate:
    """One thing to try.

    Attributes:
        name: Unique among the candidates.
        group: What it is one of (a controller's mode, a method); the best of a group is never given up.
    """

    name: str
    group: str


@dataclass(frozen=True)
class Outcome:
    """How far a candidate came.

    Attributes:
        candidate: What was tried.
        num_parts: Parts that it answered; all of them unless it was given up.
        utility: Its mean utility over those.
    """

    candidate: Candidate
    num_parts: int
    utility: float


class Measure(Protocol):
    """Lets candidates answer parts, or reads their answers."""

    def __call__(self, candidates: Sequence[Candidate], num_parts: int, /) -> Sequence[float]:
        """The mean utility of each candidate over the first ``num_parts`` parts together."""
        ...


def split_by_halving(items: Sequence[Item], num_halvings: int) -> list[Sequence[Item]]:
    """Cut items so that every part but the first doubles how many there are so far.

    Args:
        items: Cut in order; of fewer than ``2 ** num_halvings`` there are fewer parts.
        num_halvings: Parts after the first.
    """
    ends = [len(items) >> i for i in range(num_halvings, -1, -1)]
    starts = [0, *ends[:-1]]
    return [items[a:b] for a, b in zip(starts, ends, strict=True) if b > a]


def successive_halving(
    candidates: Sequence[Candidate],
    num_parts: int,
    measure: Measure,
    *,
    within_groups: bool = False,
) -> list[Outcome]:
    """Try all on the first part, and after each part but the last give up the worse half of those left.

    Args:
        candidates: What to try.
        num_parts: Parts of the problems.
        measure: Called once a part with those left, in their given order.
        within_groups: Halve every group by itself, not all candidates together.

    Returns:
        Those given up after the first part, then the second, and so on, survivors last; within each in
        their given order.
    """
    left, outcomes = list(candidates), list[Outcome]()
    for seen in range(1, num_parts + 1):
        utilities = measure(left, seen)
        last = seen == num_parts
        kept = [] if last else survivors(left, utilities, within_groups=within_groups)
        outcomes += [
            Outcome(candidate, seen, utility)
            for candidate, utility in zip(left, utilities, strict=True)
            if candidate not in kept
        ]
        left = kept
    return outcomes


def survivors(
    candidates: Sequence[Candidate], utilities: Sequence[float], *, within_groups: bool = False
) -> list[Candidate]:
    """The better half (rounded up) and the best of every group, in their given order; of equals the first.

    Args:
        candidates: Those left.
        utilities: Of each.
        within_groups: Take the better half of every group, not of all together.
    """
    order = sorted(range(len(candidates)), key=lambda i: -utilities[i])  # stable
    ranked = [candidates[i] for i in order]
    groups: dict[str, list[Candidate]] = {}
    for candidate in ranked:
        groups.setdefault(candidate.group, []).append(candidate)
    pools = list(groups.values()) if within_groups else [ranked]
    kept = {candidate for pool in pools for candidate in pool[: (len(pool) + 1) // 2]}
    kept |= {members[0] for members in groups.values()}
    return [candidate for candidate in candidates if candidate in kept]
