"""Lines graded per second, by grader and number of worker processes, side by side in one run.

Usage: ``python benchmarks/grading.py [--lines 20000]``. Responses are synthetic, some 300 characters each.
"""

from __future__ import annotations

import argparse
import random
import time
from contextlib import closing
from typing import Any

from stir_train.config.inputs import TaskConfig
from stir_train.data.grading import Grader
from stir_train.types.rollout import Gold

CASES: dict[str, tuple[TaskConfig, str, Gold]] = {
    "numeric": (TaskConfig(grader="numeric"), "The answer is ${}.", Gold("18")),
    "choice": (TaskConfig(grader="choice"), "Answer: ({}) wood", Gold("B", ("iron", "wood"))),
    "boolean": (TaskConfig(grader="boolean"), "Answer: {}, it is.", Gold("yes")),
    "math": (TaskConfig(grader="math"), "So $\\boxed{{\\frac{{{}}}{{2}}}}$.", Gold("9")),
}
ANSWERS = {"numeric": ["18", "1,234", "3/4"], "choice": ["A", "B"], "boolean": ["yes", "no"]}


def responses(name: str, count: int, rng: random.Random) -> list[str]:
    """Synthetic responses that end in a stated answer."""
    _, frame, _ = CASES[name]
    answers = ANSWERS.get(name, ["18", "19", "20"])
    steps = "First we take 12 and add 7, which is 19; then we halve what is left over. " * 4
    return [f"{steps}\n\n{frame.format(rng.choice(answers))}" for _ in range(count)]


def measure(name: str, count: int, workers: int) -> float:
    """Lines per second, after the workers have started."""
    config, _, gold = CASES[name]
    texts = responses(name, count, random.Random(0))
    arguments: tuple[Any, ...] = (texts, [gold] * count, [False] * count)
    with closing(Grader(config, num_workers=workers)) as grader:
        grader.grade(*arguments)
        start = time.perf_counter()
        grader.grade(*arguments)
        return count / (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=20_000)
    arguments = parser.parse_args()
    for name in CASES:
        count = arguments.lines // (20 if name == "math" else 1)
        one, two = (measure(name, count, workers) for workers in (1, 2))
        print(f"{name:8} 1 worker {one:8.0f} lines/s   2 workers {two:8.0f}   {two / one:.2f}x")


if __name__ == "__main__":
    main()
