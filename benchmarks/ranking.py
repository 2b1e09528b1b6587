"""How well replays rank settings: the estimates of finished runs beside what tuning measured.

Usage: ``python benchmarks/ranking.py RUN_DIRECTORY...``, of runs that tried everything (``tune.num_shortlisted``
unset; with ``tune.num_halvings=0`` on the whole tune split, else on its first part). Nothing is decoded. For
every size of a shortlist: what it would have saved of the tokens, and what it would have lost of the utility of
the best setting.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from stir_train.artifacts.run_dir import CONFIG_FILE, RunDir
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.config.steering import OneBlockSteering
from stir_train.evals.halving import Candidate
from stir_train.evals.metrics import mean_utility
from stir_train.evals.shortlist import is_known, worth_trying
from stir_train.models.describe import describe_model
from stir_train.runtime.answerers import utility_of
from stir_train.runtime.search import part_name
from stir_train.runtime.shortlist import estimates_of, has_estimate
from stir_train.steering.artifacts import open_run_artifacts
from stir_train.stores.reports import load_report
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.results import TuneReport
from stir_train.types.shortlist import GainEstimate

SIZES = (1, 2, 4, 8, 12, 16, 24)


@dataclass(frozen=True)
class Row:
    """A setting, what replays said of it, and what it came to.

    Attributes:
        candidate: Its name and mode.
        depth: Of the steered block.
        estimate: None where no replay has its actions.
        utility: Measured, on the problems that every setting answered.
        num_decoded: Tokens decoded for that.
    """

    candidate: Candidate
    depth: float | None
    estimate: GainEstimate | None
    utility: float
    num_decoded: int

    @property
    def gain(self) -> float:
        """What to rank it by; without an estimate it comes last."""
        return -math.inf if self.estimate is None else self.estimate.gain


def read_rows(path: Path) -> list[Row]:
    """The settings of a run that can be ranked."""
    config, run = load_config(RunConfig, path / CONFIG_FILE), RunDir(path)
    artifacts = open_run_artifacts(path, describe_model(config.model).identity)
    trials = [
        trial
        for trial in load_report(run.stage("tune"), TuneReport).trials
        if has_estimate(trial.settings)
    ]
    utility, store = utility_of(config), RolloutStore(run.stage("tune"))
    estimates = estimates_of(
        artifacts,
        (run.stage("basis"), run.stage("validate")),
        [trial.settings for trial in trials],
        utility,
    )
    rows = []
    for trial, estimate in zip(trials, estimates, strict=True):
        candidate = Candidate(trial.metrics.name, trial.settings.mode)
        name = part_name(candidate, 0)
        answers = store.read(name)
        num_tokens = sum(item.outcome.num_tokens for item in answers) - sum(store.num_reused(name))
        depth = trial.settings.depth if isinstance(trial.settings, OneBlockSteering) else None
        rows.append(Row(candidate, depth, estimate, mean_utility(answers, utility), num_tokens))
    return sorted(rows, key=lambda row: -row.utility)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; NaN where one does not vary."""

    def ranks(values: Sequence[float]) -> Tensor:
        found = torch.tensor(values, dtype=torch.float64).round(decimals=9)
        below = (found[:, None] > found[None]).sum(1)
        return below + ((found[:, None] == found[None]).sum(1) - 1) / 2

    both = torch.stack([ranks(first), ranks(second)])
    return float(torch.corrcoef(both)[0, 1]) if len(first) > 1 else float("nan")


def correlation(rows: Sequence[Row]) -> float:
    """Between estimates and utilities, of the rows that have both."""
    pairs = [(row.estimate.gain, row.utility) for row in rows if row.estimate is not None]
    return spearman([a for a, _ in pairs], [b for _, b in pairs])


def best_of_random(utilities: Sequence[float], num: int) -> float:
    """The expected best of ``num`` settings drawn at random."""
    ascending = sorted(utilities)
    ways = math.comb(len(ascending), num)
    return sum(u * math.comb(i, num - 1) / ways for i, u in enumerate(ascending))


def show(console: Console, path: Path, rows: Sequence[Row]) -> None:
    """Print a run's settings, the best first, and what shortlists of them come to."""
    table = Table(title=str(path), title_justify="left")
    for column in ("setting", "utility", "estimated gain", "effective replays", "states steered"):
        table.add_column(column)
    for row in rows:
        found = row.estimate
        said = ("unknown", "0", "")
        if found is not None:
            said = (
                f"{found.gain:+.3f} ± {found.standard_error:.3f}",
                f"{found.num_effective:.1f}",
                f"{found.share_steered:.0%}",
            )
        table.add_row(row.candidate.name, f"{row.utility:.3f}", *said)
    console.print(table)
    known = [row for row in rows if row.estimate is not None and is_known(row.estimate)]
    by_depth = [
        correlation(list(group))
        for _, group in itertools.groupby(
            sorted(rows, key=lambda row: row.depth or 0.0), key=lambda row: row.depth
        )
    ]
    ahead = sum(row.gain > rows[0].gain for row in rows)
    console.print(
        f"Spearman {correlation(rows):+.2f} over {sum(r.estimate is not None for r in rows)} settings with an "
        f"estimate, {correlation(known):+.2f} over the {len(known)} with enough replays, "
        f"{', '.join(f'{value:+.2f}' for value in by_depth)} by depth; the best setting is ranked "
        f"{ahead + 1} of {len(rows)}",
        soft_wrap=True,
    )
    console.print(shortlists(rows))


def shortlists(rows: Sequence[Row]) -> Table:
    """What is saved and lost by how many settings are kept.

    The last two columns are about the order alone: so many settings and no others, the best by their estimates
    (those without one last), and drawn at random.
    """
    table = Table()
    for column in ("best kept", "tried", "tokens saved", "utility lost"):
        table.add_column(column)
    table.add_column("lost by the order alone")
    table.add_column("at random")
    utilities, total = [row.utility for row in rows], sum(row.num_decoded for row in rows)
    rows = sorted(rows, key=lambda row: row.candidate.name)  # ties must not go by what was measured
    order = sorted(rows, key=lambda row: -row.gain)
    for size in [size for size in SIZES if size < len(rows)]:
        flags = worth_trying([r.candidate for r in rows], [r.estimate for r in rows], size)
        tried = [row for row, is_tried in zip(rows, flags, strict=True) if is_tried]
        saved = 1 - sum(row.num_decoded for row in tried) / total
        lost = max(utilities) - max(row.utility for row in tried)
        alone = max(utilities) - max(row.utility for row in order[:size])
        at_random = max(utilities) - best_of_random(utilities, size)
        figures = (f"{saved:.0%}", f"{lost:.3f}", f"{alone:.3f}", f"{at_random:.3f}")
        table.add_row(str(size), str(len(tried)), *figures)
    return table


def main() -> None:
    """Print every run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    console = Console()
    for path in parser.parse_args().runs:
        show(console, path, read_rows(path))


if __name__ == "__main__":
    main()
