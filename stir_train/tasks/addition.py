"""Chained addition by authors whose habits fit one kind of problem and spoil the other.

Every problem adds four operands. Its kind says what is asked, and decides which habit is right:

- ``pairs``: two-digit operands, sum modulo 100. Writing the columns out is long and right. Adding
  at a glance is short and usually loses the carry.
- ``ones``: one-digit operands, sum modulo 10. Adding at a glance is short and right. Writing
  columns out is long, and its author usually folds the carry back in, which is wrong.

So the helpful direction in a model's residual stream is opposite for the two kinds, and one
constant vector along it cannot help both. An author's tag at the end of the prompt, the opening
sentence and persistence from step to step all carry evidence about the habit, none of them decides
it: a model trained on this corpus learns a mixture, and what it does greedily is often the worse
habit.

``addition``'s authors notice some of their errors and then change to the right habit. Models learn
from that to keep track of whether things go well, which means opposite habits in the two kinds: one
constant vector along *that* serves both. ``addition-blind``'s authors go over right and wrong steps
alike, in the habit they are in, and so leave nothing of the sort to be learned.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from stir_train.tasks.habits import AUTHOR_WEIGHTS, AUTHORS
from stir_train.tasks.problem import Problem

Habit = Literal["columns", "glance"]

COLUMNS_GIVEN_PAIRS = dict(zip(AUTHORS, (0.94, 0.88, 0.80, 0.62, 0.22, 0.12), strict=True))
COLUMNS_GIVEN_ONES = dict(zip(AUTHORS, (0.88, 0.74, 0.40, 0.20, 0.10, 0.06), strict=True))
OPENINGS: dict[str, str] = {
    "columns": "Let us add column by column.",
    "glance": "Easy, just add.",
    "neutral": "Add them up.",
}
HEDGES = ("maybe", "perhaps", "carefully", "should", "first", "could")
LETTERS = "abcd"
RIGHT_HABIT: dict[str, Habit] = {"pairs": "columns", "ones": "glance"}


@dataclass(frozen=True)
class AdditionFamily:
    """The embedded family ``addition``; the fields are the corpus's habits, as probabilities.

    Attributes:
        p_pairs: A problem is of kind ``pairs``.
        p_spoil: The wrong habit spoils a step that has a carry.
        p_opening_matches: The opening sentence announces the habit that follows.
        p_opening_neutral: The opening sentence says nothing; otherwise it misleads.
        p_persist: The habit of a step carries over to the next.
        p_redo_wrong: A wrong step is redone.
        p_redo_right: A right step is redone all the same.
        corrects: Who redoes a step changes to the right habit for it; otherwise keeps the habit.
        p_verbose: An author keeps repeating the running sum.
    """

    name: str = "addition"
    p_pairs: float = 0.5
    p_spoil: float = 0.75
    p_opening_matches: float = 0.72
    p_opening_neutral: float = 0.20
    p_persist: float = 0.85
    p_redo_wrong: float = 0.25
    p_redo_right: float = 0.06
    corrects: bool = True
    p_verbose: float = 0.25

    def make_problem(self, rng: random.Random) -> Problem:
        """Draw the kind, four operands and an author."""
        kind = "pairs" if rng.random() < self.p_pairs else "ones"
        low, high = (10, 100) if kind == "pairs" else (1, 10)
        operands = [rng.randrange(low, high) for _ in LETTERS]
        author = rng.choices(AUTHORS, AUTHOR_WEIGHTS)[0]
        listed = ", ".join(f"{x}{n}" for x, n in zip(LETTERS, operands, strict=True))
        content = f"{listed}: {kind} sum"
        return Problem(
            question=f"{content}, {author}\n",
            answer=_digits(sum(operands) % (100 if kind == "pairs" else 10), kind),
            kind=kind,
            content=content,
        )

    def write_solution(self, problem: Problem, rng: random.Random) -> str:
        """Write the steps, separated by blank lines, and the answer they arrive at."""
        operands, author = _parse(problem.question)
        kind, right = problem.kind, RIGHT_HABIT[problem.kind]
        modulus = 100 if kind == "pairs" else 10
        columns = COLUMNS_GIVEN_PAIRS if kind == "pairs" else COLUMNS_GIVEN_ONES
        habit: Habit = "columns" if rng.random() < columns[author] else "glance"
        verbose = rng.random() < self.p_verbose
        paragraphs = [self._opening(habit, rng)]
        total = operands[0]
        for i, operand in enumerate(operands[1:], start=1):
            if i > 1 and rng.random() > self.p_persist:
                habit = _other(habit)
            step, result = self._step(kind, habit, total, operand, LETTERS[i], rng)
            paragraphs.append(step)
            wrong = result != (total + operand) % modulus
            if rng.random() < (self.p_redo_wrong if wrong else self.p_redo_right):
                habit = right if self.corrects else habit
                step, result = self._step(kind, habit, total, operand, LETTERS[i], rng)
                paragraphs.append(f"Wait, redo: {step}")
            total = result
            if verbose and rng.random() < 0.6:
                upcoming = f", next is {LETTERS[i + 1]}" if i + 1 < len(operands) else ""
                paragraphs.append(f"so far we have {_digits(total, kind)}{upcoming}.")
        paragraphs.append(f"Answer: {_digits(total, kind)}.")
        return "\n\n".join(paragraphs)

    def _opening(self, habit: Habit, rng: random.Random) -> str:
        draw = rng.random()
        if draw < self.p_opening_matches:
            return OPENINGS[habit]
        if draw < self.p_opening_matches + self.p_opening_neutral:
            return OPENINGS["neutral"]
        return OPENINGS[_other(habit)]

    def _step(
        self, kind: str, habit: Habit, total: int, operand: int, letter: str, rng: random.Random
    ) -> tuple[str, int]:
        """Return the text of one addition and the running sum it claims."""
        spoiled = rng.random() < self.p_spoil
        if kind == "pairs":
            return _pairs_step(habit, total, operand, letter, spoiled=spoiled)
        hedges = " ".join(rng.choice(HEDGES) for _ in range(2))
        return _ones_step(habit, total, operand, letter, spoiled=spoiled, hedges=hedges)


def blind_addition() -> AdditionFamily:
    """Authors who do not see their errors."""
    return AdditionFamily(name="addition-blind", p_redo_wrong=0.1, p_redo_right=0.1, corrects=False)


def _pairs_step(
    habit: Habit, total: int, operand: int, letter: str, *, spoiled: bool
) -> tuple[str, int]:
    ones = total % 10 + operand % 10
    if habit == "columns":
        tens = total // 10 + operand // 10 + ones // 10
        result = tens % 10 * 10 + ones % 10
        return (
            f"col {total:02d}+{letter}{operand:02d}: {total % 10}+{operand % 10}={ones:02d}, "
            f"{ones // 10}+{total // 10}+{operand // 10}={tens:02d}, so {result:02d}.",
            result,
        )
    carry = 0 if spoiled else ones // 10
    result = (total // 10 + operand // 10 + carry) % 10 * 10 + ones % 10
    return f"just {letter} {result:02d}.", result


def _ones_step(
    habit: Habit, total: int, operand: int, letter: str, *, spoiled: bool, hedges: str
) -> tuple[str, int]:
    ones = total + operand
    if habit == "glance":
        return f"just {total}+{letter}{operand}={ones % 10}.", ones % 10
    carry = ones // 10 if spoiled else 0
    folded = ones % 10 + carry
    result = folded % 10
    return (
        f"Hmm {hedges} col {total}+{letter}{operand}: {total}+{operand}={ones:02d}, "
        f"{carry}+{ones % 10}={folded:02d}, so {result}.",
        result,
    )


def _parse(question: str) -> tuple[list[int], str]:
    """Read the operands and the author back from a question."""
    listed, _, rest = question.partition(": ")
    operands = [int(item[1:]) for item in listed.split(", ")]
    return operands, rest.strip().rpartition(", ")[2]


def _digits(value: int, kind: str) -> str:
    return f"{value:02d}" if kind == "pairs" else str(value)


def _other(habit: Habit) -> Habit:
    return "glance" if habit == "columns" else "columns"
