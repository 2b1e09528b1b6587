"""Sorting digits, by authors who are too slow where it is easy and too quick where it is hard.

A problem is five digits to put in order, smallest first. Its kind says what is asked:

- ``distinct``: no digit occurs twice. Taking the smallest at a glance is short and right. Walking
  along the list with the smallest so far is right too, and several times as long.
- ``repeats``: some digit occurs twice. A glance usually takes both at once and so loses one;
  walking along takes one.

The two kinds need opposite habits, so no constant vector serves both. The author draws the habit
anew before every digit, and only the step that meets the repeated digit decides: the first one or
the last but one. ``sorting`` loses both accuracy and tokens; ``sorting-waste``, whose authors seldom
hurry over repeats and mostly dawdle elsewhere, loses tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stir_train.tasks.habits import Openings, Pace, by_author, draw_author, draw_pace
from stir_train.tasks.problem import Problem

OPENINGS = Openings("Let us walk along.", "Easy, just take.", "Sort them.")
NUM_DIGITS = 5


@dataclass(frozen=True)
class SortingFamily:
    """The embedded family ``sorting``; the fields are the corpus's habits, as probabilities.

    Attributes:
        slow_given_distinct, slow_given_repeats: By author, a step walks along.
        p_repeats: A problem is of kind ``repeats``.
        p_spoil: A glance at a digit that is left twice takes both.
        p_persist: The habit of a step carries over to the next; otherwise it is drawn again.
        p_redo_wrong: A wrong step is noticed and redone by walking along.
        p_redo_right: A slow author walks along again after a right step.
    """

    name: str = "sorting"
    slow_given_distinct: Mapping[str, float] = field(
        default_factory=lambda: by_author(0.96, 0.92, 0.86, 0.76, 0.55, 0.20)
    )
    slow_given_repeats: Mapping[str, float] = field(
        default_factory=lambda: by_author(0.92, 0.84, 0.66, 0.42, 0.20, 0.10)
    )
    p_repeats: float = 0.4
    p_spoil: float = 0.75
    p_persist: float = 0.5
    p_redo_wrong: float = 0.25
    p_redo_right: float = 0.1

    def make_problem(self, rng: random.Random) -> Problem:
        """Draw the kind, the digits and an author."""
        kind = "repeats" if rng.random() < self.p_repeats else "distinct"
        digits = rng.sample(range(10), NUM_DIGITS - (kind == "repeats"))
        if kind == "repeats":
            digits.insert(rng.randrange(NUM_DIGITS), rng.choice(digits))
        content = f"{_join(digits)}: {kind}"
        return Problem(
            question=f"{content}, {draw_author(rng)}\n",
            answer=_join(sorted(digits)),
            kind=kind,
            content=content,
        )

    def write_solution(self, problem: Problem, rng: random.Random) -> str:
        """Write the steps, separated by blank lines, and the list they arrive at."""
        listed, _, rest = problem.question.strip().partition(": ")
        author = rest.rpartition(", ")[2]
        repeats = problem.kind == "repeats"
        slow = self.slow_given_repeats if repeats else self.slow_given_distinct
        pace = draw_pace(slow[author], rng)
        paragraphs = [OPENINGS.draw(pace, rng)]
        left, taken = [int(digit) for digit in listed], ""
        while left:
            if taken and rng.random() > self.p_persist:
                pace = draw_pace(slow[author], rng)
            step, after = self._step(left, taken, pace, rng)
            paragraphs.append(step)
            wrong = len(after) != len(left) - 1
            p_redo = self.p_redo_wrong if wrong else self.p_redo_right * (pace == "slow")
            if rng.random() < p_redo:
                pace = "slow"
                step, after = self._step(left, taken, pace, rng)
                paragraphs.append(f"Wait, again: {step}")
            left, taken = after, taken + str(min(left))
        paragraphs.append(f"Answer: {taken}.")
        return "\n\n".join(paragraphs)

    def _step(
        self, left: Sequence[int], taken: str, pace: Pace, rng: random.Random
    ) -> tuple[str, list[int]]:
        """Return the text of taking the smallest digit, and what it claims is left."""
        spoiled = rng.random() < self.p_spoil
        least = min(left)
        after = list(left)
        after.remove(least)
        if pace == "quick" and spoiled:
            after = [digit for digit in after if digit != least]
        outcome = f"got {taken}{least}, left {_join(after) or 'none'}."
        if pace == "quick":
            return f"just {least}, {outcome}", after
        walk = ", ".join(f"{digit} low {min(left[: i + 1])}" for i, digit in enumerate(left))
        return f"walk {walk}, so {least}, {outcome}", after


def wasteful_sorting() -> SortingFamily:
    """Authors who are nearly always right, and nearly always slow."""
    return SortingFamily(
        name="sorting-waste",
        slow_given_distinct=by_author(0.97, 0.94, 0.88, 0.80, 0.60, 0.25),
        slow_given_repeats=by_author(0.99, 0.98, 0.97, 0.95, 0.90, 0.70),
        p_repeats=0.25,
        p_redo_right=0.15,
    )


def _join(digits: Sequence[int]) -> str:
    return "".join(map(str, digits))
