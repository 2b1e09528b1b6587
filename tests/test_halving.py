"""Successive halving: nobody better is given up, every group stays, a search can be retraced."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stir_train.evals.halving import (
    Candidate,
    Outcome,
    split_by_halving,
    successive_halving,
    survivors,
)

SCORES = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0])),
    min_size=1,
    max_size=12,
)


def _candidates(scored: Sequence[tuple[str, float]]) -> list[Candidate]:
    return [Candidate(f"{i}", group) for i, (group, _) in enumerate(scored)]


@given(SCORES, st.booleans())
def test_survivors_are_never_worse_than_the_dropped_of_their_pool(
    scored: list[tuple[str, float]], within_groups: bool
) -> None:
    candidates, utilities = _candidates(scored), [utility for _, utility in scored]
    of = dict(zip(candidates, utilities, strict=True))
    kept = survivors(candidates, utilities, within_groups=within_groups)
    assert kept == [c for c in candidates if c in kept], "in their given order"
    dropped = [c for c in candidates if c not in kept]
    best = {g: max(of[c] for c in candidates if c.group == g) for g, _ in scored}
    for candidate in kept:
        rivals = [d for d in dropped if not within_groups or d.group == candidate.group]
        is_best = of[candidate] == best[candidate.group]
        assert is_best or all(of[candidate] >= of[d] for d in rivals)
    for group, utility in best.items():
        assert utility in [of[c] for c in kept if c.group == group]
    pools = {g: [c for c in candidates if c.group == g] for g in best}
    sizes = [len(p) for p in pools.values()] if within_groups else [len(candidates)]
    least = sum((size + 1) // 2 for size in sizes)
    assert least <= len(kept) <= least + (0 if within_groups else len(best))


def test_of_equals_the_first_stays() -> None:
    candidates = _candidates([("a", 1.0)] * 4)
    assert survivors(candidates, [1.0] * 4) == candidates[:2]


class _Recorded:
    """A measure that remembers whom it was asked about."""

    def __init__(self, answers: dict[str, list[float]]) -> None:
        self.answers = answers
        self.asked: list[tuple[list[str], int]] = []

    def __call__(self, candidates: Sequence[Candidate], num_parts: int) -> list[float]:
        self.asked.append(([c.name for c in candidates], num_parts))
        parts = [self.answers[c.name][:num_parts] for c in candidates]
        return [sum(values) / len(values) for values in parts]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.floats(-1, 1), min_size=3, max_size=3)),
        min_size=1,
        max_size=9,
    ),
    st.integers(1, 3),
    st.booleans(),
)
def test_a_search_is_retraced_from_what_it_asked_for(
    given_scores: list[tuple[str, list[float]]], num_parts: int, within_groups: bool
) -> None:
    candidates = [Candidate(f"{i}", group) for i, (group, _) in enumerate(given_scores)]
    live = _Recorded({f"{i}": values for i, (_, values) in enumerate(given_scores)})
    outcomes = successive_halving(candidates, num_parts, live, within_groups=within_groups)
    assert sorted(o.candidate.name for o in outcomes) == sorted(c.name for c in candidates)
    assert [seen for _, seen in live.asked] == list(range(1, num_parts + 1))
    # Nothing but what was answered is there to be read, and it is enough.
    recorded = {o.candidate.name: live.answers[o.candidate.name][: o.num_parts] for o in outcomes}
    again = _Recorded(recorded)
    retraced = successive_halving(candidates, num_parts, again, within_groups=within_groups)
    assert retraced == outcomes
    assert again.asked == live.asked
    left = [o.num_parts for o in outcomes]
    assert left == sorted(left), "survivors last"


def test_who_is_given_up_when() -> None:
    names = {
        "alone": ("y", 0.0),
        "bad": ("x", 0.1),
        "poor": ("x", 0.2),
        "fair": ("x", 0.3),
        "good": ("x", 0.9),
    }
    candidates = [Candidate(name, group) for name, (group, _) in names.items()]

    def measure(left: Sequence[Candidate], num_parts: int) -> list[float]:
        return [names[candidate.name][1] for candidate in left]

    outcomes = successive_halving(candidates, 3, measure)
    left = {outcome.candidate.name: outcome.num_parts for outcome in outcomes}
    assert left == {"bad": 1, "poor": 2, "alone": 3, "fair": 3, "good": 3}
    once = successive_halving(candidates, 1, measure)
    assert once == [Outcome(c, 1, names[c.name][1]) for c in candidates]


@pytest.mark.parametrize(("count", "halvings"), [(300, 0), (300, 1), (300, 2), (7, 3), (1, 2)])
def test_halving_cuts_every_problem_once_and_doubles_what_was_seen(
    count: int, halvings: int
) -> None:
    parts = split_by_halving(range(count), halvings)
    assert [i for part in parts for i in part] == list(range(count))
    assert all(len(part) > 0 for part in parts)
    seen = len(parts[0])
    for part in parts[1:]:
        assert abs(len(part) - seen) <= 1
        seen += len(part)
