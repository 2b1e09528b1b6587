"""Find questions in different splits that are nearly the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from stir_train.data.problems import normalise

SHINGLE_WORDS = 3
SIMILARITY = 0.7
MAX_SHARING = 100
"""A shingle in more questions than this is a phrase of the task, and brings no pair up."""


@dataclass(frozen=True)
class NearDuplicate:
    """Two questions of different splits, and the Jaccard similarity of their word triples."""

    first: str
    first_split: str
    second: str
    second_split: str
    similarity: float


def near_duplicates(splits: Mapping[str, Sequence[str]]) -> list[NearDuplicate]:
    """List pairs of questions in different splits that share most of their word triples.

    They are other problems by hash, so no split is wrong; but a test item whose twin was harvested
    says less than it seems to.

    Args:
        splits: Questions by split.
    """
    questions = [(name, text) for name, texts in splits.items() for text in texts]
    shingles = [_shingles(text) for _, text in questions]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, own in enumerate(shingles):
        for shingle in own:
            holders[shingle].append(index)
    common: dict[tuple[int, int], int] = defaultdict(int)
    for holding in holders.values():
        if len(holding) <= MAX_SHARING:
            for pair in combinations(holding, 2):
                common[pair] += 1
    found = []
    for (i, j), shared in common.items():
        similarity = shared / (len(shingles[i]) + len(shingles[j]) - shared)
        (first_split, first), (second_split, second) = questions[i], questions[j]
        if similarity >= SIMILARITY and first_split != second_split:
            found.append(NearDuplicate(first, first_split, second, second_split, similarity))
    return sorted(found, key=lambda pair: -pair.similarity)


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = [word.strip(".,;:!?\"'()") for word in normalise(text).split()]
    if len(words) <= SHINGLE_WORDS:
        return frozenset([tuple(words)])
    return frozenset(
        tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)
    )
