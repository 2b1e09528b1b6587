"""How often the harness calls nothing a gain: a null method over resampled splits of a finished run.

Usage: ``python benchmarks/calibration.py RUN_DIRECTORY [--method stir] [--splits 200]``. For every
resampled split each item's two answers, greedy and the method's, change places by a coin: whatever the
method does, the two are then exchangeable and no difference is real.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from stir_train.artifacts.run_dir import RunDir
from stir_train.artifacts.tables import load_table
from stir_train.evals.metrics import compare_to_baseline
from stir_train.types.rollout import GradedRollout
from stir_train.types.utility import Utility


def answers(run: Path, method: str) -> list[GradedRollout]:
    """A method's answers to the test items, in order."""
    stage = RunDir(run).stage("evaluate")
    return [g for f in stage.files(f"{method}/rollouts-") for g in load_table(f, GradedRollout)]


def main() -> None:
    """Print the share of splits in which an interval excludes zero."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--method", default="stir")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=2000)
    arguments = parser.parse_args()
    pairs = list(
        zip(answers(arguments.run, "greedy"), answers(arguments.run, arguments.method), strict=True)
    )
    gains = {"accuracy": 0, "fewer tokens": 0, "utility": 0}
    for split in range(arguments.splits):
        rng = random.Random(split)
        chosen = rng.sample(pairs, min(arguments.items, len(pairs)))
        flipped = [pair if rng.random() < 0.5 else pair[::-1] for pair in chosen]
        found = compare_to_baseline(
            "null",
            [pair[1] for pair in flipped],
            [pair[0] for pair in flipped],
            num_resamples=arguments.resamples,
            utility=Utility(token_price=1.0, max_new_tokens=1000),
        )
        gains["accuracy"] += found.delta_accuracy_ci95[0] > 0
        gains["fewer tokens"] += found.delta_tokens_ci95[1] < 0
        gains["utility"] += found.delta_utility_ci95[0] > 0
    print(f"{arguments.splits} splits of {arguments.items} items, a null method; nominal 2.5 %")
    for name, count in gains.items():
        print(f"  called a gain in {name}: {count / arguments.splits:.1%}")


if __name__ == "__main__":
    main()
