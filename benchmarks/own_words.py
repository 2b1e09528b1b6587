"""Problems that are in no task of the package, for a run as a user's own: sums of two digits in words.

Usage: ``python benchmarks/own_words.py FILE.jsonl``. With a copy of SmolLM2-135M-Instruct in ``my-model``:
``stir-train init my-model FILE.jsonl --effort quick``, then the commands that it prints. That model seems to do
worse when told to think step by step: write ``template: "{question}"`` into the configuration, and the budget that the rollouts propose.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

NUM_PROBLEMS, SEED = 480, 7
NAMES = ("Tom", "Ann", "Ben", "Sue", "Max", "Eva", "Leo", "Mia", "Sam", "Zoe")
THINGS = ("apples", "pens", "coins", "books", "cards", "shells")


def problems(rng: random.Random) -> list[tuple[str, int]]:
    """Distinct questions with their answers, in a random order."""
    found: dict[str, int] = {}
    while len(found) < NUM_PROBLEMS:
        held, gets = rng.randint(2, 9), rng.randint(2, 9)
        name, things = rng.choice(NAMES), rng.choice(THINGS)
        question = f"{name} has {held} {things} and gets {gets} more. How many {things} does {name} have now?"
        found[question] = held + gets
    return list(found.items())


def main() -> None:
    """Write them, a JSON object a line."""
    rows = (
        {"question": question, "answer": str(answer)}
        for question, answer in problems(random.Random(SEED))
    )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path(sys.argv[1]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
