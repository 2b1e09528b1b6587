"""What a synthetic task family is: problems with an exact answer and solutions of mixed quality."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from stir_train.errors import ConfigError

RESERVED_TENTHS = 4
"""Tenths of the problem space that the training corpus never sees, kept for experiments."""
DRAWS_IN_VAIN = 10_000
"""After so many draws without a new problem, there are taken to be no more."""


@dataclass(frozen=True)
class Problem:
    """One synthetic problem.

    Attributes:
        question: The prompt, verbatim, ending in a newline.
        answer: The canonical correct answer.
        kind: Which sub-family it comes from (for breakdowns, never shown to a method).
        content: What the problem is without its author: two problems with equal content are
            the same problem.
    """

    question: str
    answer: str
    kind: str
    content: str

    @property
    def reserved(self) -> bool:
        """Whether this problem is kept out of the training corpus, by a hash of its content."""
        return hashlib.sha256(self.content.encode()).digest()[0] % 10 < RESERVED_TENTHS


class TaskFamily(Protocol):
    """A family of problems, and a corpus of authors with habits of different quality."""

    @property
    def name(self) -> str:
        """What configurations call it."""
        ...

    def make_problem(self, rng: random.Random) -> Problem:
        """Draw one problem."""
        ...

    def write_solution(self, problem: Problem, rng: random.Random) -> str:
        """Write a solution as one of the corpus's authors would, right or wrong."""
        ...


def corpus(family: TaskFamily, rng: random.Random) -> Iterator[tuple[Problem, str]]:
    """Yield training pairs for ever, never touching a reserved problem."""
    while True:
        problem = family.make_problem(rng)
        if not problem.reserved:
            yield problem, family.write_solution(problem, rng)


def held_out_problems(
    family: TaskFamily, num_problems: int, *, seed: int = 0, without: Collection[str] = ()
) -> list[Problem]:
    """Return the first reserved problems of a seeded stream, no two with the same content.

    Args:
        family: Where problems come from.
        num_problems: How many.
        seed: Seed of the stream; embedded splits are cut from that of 0.
        without: Contents to leave out; the next of the same kind takes the place of each, so that what
            is drawn has the family's mix of kinds whatever is left out.

    Raises:
        ConfigError: If the reserved part of the family is too small.
    """
    rng = random.Random(f"held-out/{family.name}/{seed}")
    seen: set[str] = set()
    problems: list[Problem] = []
    kind: str | None = None
    in_vain = 0
    while len(problems) < num_problems and in_vain < DRAWS_IN_VAIN:
        problem = family.make_problem(rng)
        in_vain += 1
        if not problem.reserved or problem.content in seen or kind not in (None, problem.kind):
            continue
        kind = problem.kind if problem.content in without else None
        if kind is None:
            seen.add(problem.content)
            problems.append(problem)
            in_vain = 0
    if len(problems) == num_problems:
        return problems
    raise ConfigError(
        f"{family.name} has too few reserved problems for {num_problems}; ask for fewer"
    )
