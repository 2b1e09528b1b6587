"""Which phrases steering makes rarer or commoner, and how the problems fare whose answers have them.

Texts are compared as words between white space, with every number written ``#``; a phrase is one to
`MAX_WORDS` of them in a row. Counted are answers that have a phrase, not its occurrences. This describes
what changed and proves nothing: of many thousand phrases the most changed are shown.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stir_train.types.rollout import GradedRollout

MAX_WORDS = 8
SAME_ANSWERS = 0.8
"""Of phrases whose answers overlap by so much (intersection over union) one is shown."""
NEARLY = 0.9
"""Of these it is the longest whose change is at least this share of the greatest."""
_NUMBER = re.compile(r"\d(?:[\d,.]*\d)?")
_START = ""
"""Stands before an answer's first word, so that openings are phrases too."""

Phrase = tuple[str, ...]


@dataclass(frozen=True)
class PhraseChange:
    """A phrase whose frequency changed.

    Attributes:
        phrase: Its words; numbers are ``#``.
        is_opening: Whether answers begin with it.
        num_before, num_after: Answers that have it.
        items: Indices of the problems whose answers have it on the side where it is commoner.
        right_before, right_after: How many of those problems are answered rightly.
    """

    phrase: str
    is_opening: bool
    num_before: int
    num_after: int
    items: tuple[int, ...]
    right_before: int
    right_after: int


@dataclass(frozen=True)
class _Holders:
    """Indices of the answers that have a phrase."""

    before: frozenset[int]
    after: frozenset[int]

    @property
    def change(self) -> int:
        return len(self.after) - len(self.before)

    @property
    def more(self) -> frozenset[int]:
        """On the side where there are more."""
        return self.before if self.change < 0 else self.after

    def are_those_of(self, other: _Holders) -> bool:
        """Whether nearly the same answers have another phrase, and it changed the same way."""
        one, two = self.more, other.more
        alike = len(one & two) >= SAME_ANSWERS * len(one | two)
        return alike and (self.change < 0) == (other.change < 0)


def phrase_changes(
    before: Sequence[GradedRollout],
    after: Sequence[GradedRollout],
    *,
    max_phrases: int = 10,
    min_share: float = 0.05,
) -> list[PhraseChange]:
    """The phrases whose frequency changed most, greatest change first.

    Args:
        before: Answers of one method.
        after: Answers of another to the same problems, in the same order.
        max_phrases: How many to return at most.
        min_share: Share of all answers by which a phrase must change.
    """
    assert len(before) == len(after), (len(before), len(after))
    least = max(2, round(min_share * len(before)))
    texts = [item.text for item in before], [item.text for item in after]
    holders = {p: h for p, h in _holders(*texts, least).items() if abs(h.change) >= least}
    shown = list(_one_of_each(holders))[:max_phrases]
    return [_described(phrase, holders[phrase], before, after) for phrase in shown]


def examples_of(
    changes: Sequence[PhraseChange],
    before: Sequence[GradedRollout],
    after: Sequence[GradedRollout],
) -> list[int]:
    """A problem for each change that shows it, each another one where there are enough.

    Preferred are problems that went from wrong to right.
    """
    shown: list[int] = []
    for change in changes:
        mended = [i for i in change.items if after[i].grade.correct > before[i].grade.correct]
        ranked = [*mended, *change.items]
        shown.append(next((item for item in ranked if item not in shown), ranked[0]))
    return shown


def _described(
    phrase: Phrase,
    holders: _Holders,
    before: Sequence[GradedRollout],
    after: Sequence[GradedRollout],
) -> PhraseChange:
    items = tuple(sorted(holders.more))
    return PhraseChange(
        phrase=" ".join(word for word in phrase if word != _START),
        is_opening=phrase[0] == _START,
        num_before=len(holders.before),
        num_after=len(holders.after),
        items=items,
        right_before=sum(before[item].grade.correct for item in items),
        right_after=sum(after[item].grade.correct for item in items),
    )


def _holders(before: Sequence[str], after: Sequence[str], least: int) -> dict[Phrase, _Holders]:
    """Answers by phrase, for phrases that at least so many answers of either side have.

    A phrase is as rare as its rarest part, so longer ones are looked for among frequent shorter ones.
    """
    sides = [[_words(text) for text in side] for side in (before, after)]
    found: dict[Phrase, _Holders] = {}
    frequent: set[Phrase] = {()}
    for length in range(1, MAX_WORDS + 2):
        counted = []
        for side in sides:
            having: dict[Phrase, set[int]] = defaultdict(set)
            for item, words in enumerate(side):
                for start in range(len(words) - length + 1):
                    if words[start : start + length - 1] in frequent:
                        having[words[start : start + length]].add(item)
            counted.append(having)
        frequent = {p for having in counted for p, items in having.items() if len(items) >= least}
        for phrase in frequent:
            found[phrase] = _Holders(*(frozenset(having.get(phrase, ())) for having in counted))
    return found


def _words(text: str) -> Phrase:
    return (_START, *_NUMBER.sub("#", text).split())


def _one_of_each(holders: Mapping[Phrase, _Holders]) -> Iterator[Phrase]:
    """Phrases by their change, those of the same answers told once, by a long one."""
    left = sorted(holders, key=lambda phrase: (-abs(holders[phrase].change), -len(phrase), phrase))
    while left:
        first = holders[left[0]]
        alike = [phrase for phrase in left if holders[phrase].are_those_of(first)]
        changed = [p for p in alike if abs(holders[p].change) >= NEARLY * abs(first.change)]
        yield max(changed, key=len)
        told = set(alike)
        left = [phrase for phrase in left if phrase not in told]
