"""Which rank and which part of a batch a sequence is trained in."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stir_train.distill.samples import by_length
from stir_train.types.rollout import Rollout


def _parts(lengths: list[int], num_ranks: int, num_parts: int) -> list[list[int]]:
    """The lengths in every part of every rank; a part's rank is its number modulo the ranks."""
    samples = [
        Rollout(f"{i}", 0, (1,), (2,) * (length - 1), (), (), "stop")
        for i, length in enumerate(lengths)
    ]
    ordered = by_length(range(len(lengths)), samples, num_ranks=num_ranks, num_parts=num_parts)
    assert sorted(ordered) == list(range(len(lengths)))
    count = num_ranks * num_parts
    return [[lengths[i] for i in ordered[first::count]] for first in range(count)]


@given(
    lengths=st.lists(st.integers(1, 30), max_size=40),
    num_ranks=st.integers(1, 4),
    num_parts=st.integers(1, 3),
)
def test_no_part_has_lengths_from_between_those_of_another(
    lengths: list[int], num_ranks: int, num_parts: int
) -> None:
    parts = _parts(lengths, num_ranks, num_parts)
    filled = sorted((min(part), max(part)) for part in parts if part)
    for (_, most), (least, _) in pairwise(filled):
        assert most <= least


def test_ranks_have_about_as_many_tokens_each() -> None:
    parts = _parts([5, 8, 1, 4, 7, 2, 6, 3], num_ranks=2, num_parts=2)
    assert [sorted(part) for part in parts] == [[1, 2], [3, 4], [7, 8], [5, 6]]
    assert _parts([3, 1, 2], num_ranks=1, num_parts=1) == [[3, 1, 2]], "nothing to gain"
