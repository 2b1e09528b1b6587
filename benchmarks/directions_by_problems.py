"""How many harvest problems a direction needs: a finished directions stage, as if it had had fewer of them.

Usage: ``python benchmarks/directions_by_problems.py RUN [--sizes 64,96,128,160,192]``. Each size takes the first problems of
the run, and the last. ``p`` is over all rows, as the stage reports it; the cosine is with the direction of all problems.
Nothing is decoded or differentiated.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.directions.advantages import leave_one_out
from stir_train.directions.estimate import Estimate, estimate_directions
from stir_train.monitoring.console import make_console
from stir_train.runtime.attempt import read_run
from stir_train.runtime.direction_steps import step_files, step_gradients
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.directions import RolloutGradients
from stir_train.types.rollout import GradedRollout


def main() -> None:
    """Print a row for each size, end, block and place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--sizes", default="64,96,128,160,192")
    arguments = parser.parse_args()
    config = load_config(RunConfig, arguments.run / "config.yaml", [])
    with read_run(config, make_console()) as context:
        graded = list(RolloutStore(context.stage("rollout")).read())
        stage = context.stage("directions")
        gradients = step_gradients(context, stage, step_files(context, stage, 1))
    problems = list(dict.fromkeys(item.rollout.prompt_id for item in graded))
    whole = _estimate(graded, gradients, problems, config.seed)
    print("| problems | mixed | place | block | gain | halves agree | cosine | p |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for size in (int(size) for size in arguments.sizes.split(",")):
        for end, part in (("first", problems[:size]), ("last", problems[-size:])):
            _print_rows(f"{end} {size}", _estimate(graded, gradients, part, config.seed), whole)
    _print_rows(f"all {len(problems)}", whole, whole)


def _estimate(
    graded: Sequence[GradedRollout],
    gradients: RolloutGradients,
    problems: Collection[str],
    seed: int,
) -> Estimate:
    kept = set(problems)
    rows = [row for row, problem in enumerate(gradients.prompt_ids) if problem in kept]
    part = dataclasses.replace(
        gradients,
        prompt_ids=tuple(gradients.prompt_ids[row] for row in rows),
        samples=tuple(gradients.samples[row] for row in rows),
        logprobs=gradients.logprobs[rows],
        sums=gradients.sums[rows],
        state_norms=gradients.state_norms[rows],
        points=None,
    )
    worth = leave_one_out([item for item in graded if item.rollout.prompt_id in kept])
    return estimate_directions(part, worth, seed=seed, places=("prompt_end", "everywhere"))


def _print_rows(label: str, found: Estimate, whole: Estimate) -> None:
    cosines = torch.nn.functional.cosine_similarity(
        found.directions.directions, whole.directions.directions, dim=1
    )
    for row, cosine in zip(found.table, cosines.tolist(), strict=True):
        print(
            f"| {label} | {found.num_problems} | {row.place} | {row.block} | {row.gain:.3f} "
            f"| {row.split_half_cosine:.2f} | {cosine:.2f} | {row.family_p_value:.3f} |"
        )


if __name__ == "__main__":
    main()
