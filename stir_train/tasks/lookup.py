"""Following pointers through a table, by authors who mostly check far too much.

A table maps letters to letters; a solution follows three pointers. Its kind says what is asked:

- ``plain``: every key occurs once. Looking the pointer up at a glance is short and right. Reading
  out the whole table is right too, and four times as long.
- ``twice``: one key occurs twice and its last value counts. Reading out the table is right; a
  glance usually takes the first value.

Most authors read out the table, so the loss of this family is tokens. The author draws the habit
anew at every hop, and the key that occurs twice is met at the first, second or third hop: what is
decisive comes late as often as early. A constant pull towards short answers would break ``twice``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from stir_train.tasks.habits import Openings, Pace, by_author, draw_author, draw_pace
from stir_train.tasks.problem import Problem

SLOW_GIVEN_PLAIN = by_author(0.97, 0.94, 0.90, 0.80, 0.55, 0.15)
SLOW_GIVEN_TWICE = by_author(0.99, 0.98, 0.97, 0.95, 0.80, 0.45)
OPENINGS = Openings("Let us read all of it.", "Easy, just look.", "Follow the table.")
NUM_PAIRS, NUM_HOPS = 6, 3
LETTERS = "abcdefghij"

Table = list[tuple[str, str]]


@dataclass(frozen=True)
class LookupFamily:
    """The embedded family ``lookup``; the fields are the corpus's habits, as probabilities.

    Attributes:
        p_twice: A problem is of kind ``twice``.
        p_spoil: A glance at a key that occurs twice takes its first value.
        p_persist: The habit of a hop carries over to the next; otherwise it is drawn again.
        p_redo_wrong: A wrong hop is noticed and redone by reading out the table.
        p_redo_right: A slow author reads the table out again after a right hop.
    """

    name: str = "lookup"
    p_twice: float = 0.3
    p_spoil: float = 0.75
    p_persist: float = 0.5
    p_redo_wrong: float = 0.25
    p_redo_right: float = 0.2

    def make_problem(self, rng: random.Random) -> Problem:
        """Draw the kind, a table in which three hops are possible, a start and an author."""
        kind = "twice" if rng.random() < self.p_twice else "plain"
        hops = rng.sample(LETTERS, NUM_HOPS + 1)
        table = list(pairwise(hops))
        others = [key for key in LETTERS if key not in hops[:-1]]
        num_more = NUM_PAIRS - len(table) - (kind == "twice")
        table += [(key, rng.choice(LETTERS)) for key in rng.sample(others, num_more)]
        rng.shuffle(table)
        if kind == "twice":
            table = _with_an_earlier_value(table, rng.choice(hops[:-1]), rng)
        listed = ", ".join(f"{key} {value}" for key, value in table)
        content = f"{listed}: {kind}, from {hops[0]}"
        return Problem(
            question=f"{content}, {draw_author(rng)}\n",
            answer=hops[-1],
            kind=kind,
            content=content,
        )

    def write_solution(self, problem: Problem, rng: random.Random) -> str:
        """Write the hops, separated by blank lines, and the letter they arrive at."""
        table, at, author = _parse(problem.question)
        slow = SLOW_GIVEN_TWICE if problem.kind == "twice" else SLOW_GIVEN_PLAIN
        pace = draw_pace(slow[author], rng)
        paragraphs = [OPENINGS.draw(pace, rng)]
        for hop in range(NUM_HOPS):
            if hop and rng.random() > self.p_persist:
                pace = draw_pace(slow[author], rng)
            step, found = self._hop(table, at, pace, rng)
            paragraphs.append(step)
            wrong = found != _last_value(table, at)
            p_redo = self.p_redo_wrong if wrong else self.p_redo_right * (pace == "slow")
            if rng.random() < p_redo:
                pace = "slow"
                step, found = self._hop(table, at, pace, rng)
                paragraphs.append(f"Wait, again: {step}")
            at = found
        paragraphs.append(f"Answer: {at}.")
        return "\n\n".join(paragraphs)

    def _hop(self, table: Table, at: str, pace: Pace, rng: random.Random) -> tuple[str, str]:
        """Return the text of one hop and the letter it claims."""
        values = [value for key, value in table if key == at]
        spoiled = rng.random() < self.p_spoil
        if pace == "quick":
            found = at if not values else values[0] if spoiled else values[-1]
            return f"just {at} {found}.", found
        read = ", ".join(
            f"{key} {at} yes {value}" if key == at else f"{key} {at} no" for key, value in table
        )
        found = values[-1] if values else at
        return f"look: {read}, so {at} {found}.", found


def _with_an_earlier_value(table: Table, key: str, rng: random.Random) -> Table:
    """Insert a second, overruled value of ``key`` before its real one."""
    place = next(i for i, pair in enumerate(table) if pair[0] == key)
    value = rng.choice([letter for letter in LETTERS if letter not in (key, table[place][1])])
    earlier = rng.randrange(place + 1)
    return [*table[:earlier], (key, value), *table[earlier:]]


def _last_value(table: Table, at: str) -> str:
    return next((value for key, value in reversed(table) if key == at), at)


def _parse(question: str) -> tuple[Table, str, str]:
    """Read the table, the start and the author back from a question."""
    listed, _, rest = question.partition(": ")
    table = [(pair[0], pair[2]) for pair in listed.split(", ")]
    _, start, author = rest.strip().split(", ")
    return table, start.removeprefix("from "), author
