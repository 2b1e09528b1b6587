"""Put the results of several finished runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from stir_train.artifacts.atomic import write_text
from stir_train.artifacts.run_dir import RunDir
from stir_train.errors import ArtifactError
from stir_train.evals.comparison_page import render_comparison

RESULTS_FILE = "results.json"
COLUMNS = (
    "run",
    "method",
    "settings",
    "accuracy",
    "points gained",
    "tokens",
    "tokens, %",
    "passes",
)


def read_results(run: Path) -> dict[str, Any]:
    """The results of a run whose evaluation is finished, checksums verified.

    Raises:
        ArtifactError: If it is not finished, or damaged.
    """
    if not run.is_dir():
        raise ArtifactError(f"{run} is no run directory")
    path = RunDir(run).stage("evaluate").file(RESULTS_FILE)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def result_rows(runs: Sequence[Path]) -> list[tuple[str, ...]]:
    """One row a run and method, tasks outside the harvest last; deltas are from greedy decoding."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        results = read_results(run)
        labels = {method["name"]: method["label"] for method in results["methods"]}
        tables = [(run.name, results["methods"])]
        tables += [(f"{run.name} on {o['task']}", o["methods"]) for o in results["out_of_domain"]]
        for name, methods in tables:
            rows += [(name, *_figures(method, labels[method["name"]])) for method in methods]
    return rows


def write_page(runs: Sequence[Path], target: Path) -> None:
    """Write one HTML page of several runs; those that share a name go by their paths."""
    names = [run.name for run in runs]
    results = {
        run.name if names.count(run.name) == 1 else str(run): read_results(run) for run in runs
    }
    write_text(target, render_comparison(results))


def as_table(rows: Sequence[tuple[str, ...]]) -> Table:
    """Rows for the terminal."""
    table = Table(box=SIMPLE, title="held-out test items; 95 % paired intervals")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i < 3 else "right", no_wrap=i < 2)
    for row in rows:
        table.add_row(*row)
    return table


def as_markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as a Markdown table."""
    rule = ["---" if i < 3 else "---:" for i in range(len(COLUMNS))]
    lines = [COLUMNS, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures(method: Mapping[str, Any], label: str) -> tuple[str, ...]:
    is_baseline = method["name"] == "greedy"
    points = "" if is_baseline else _change(method["delta_accuracy"], method["delta_accuracy_ci95"])
    tokens = (
        "" if is_baseline else _change(method["delta_tokens_fraction"], method["delta_tokens_ci95"])
    )
    settings = "" if label == method["name"] else label
    return (
        method["name"],
        settings,
        f"{100 * method['accuracy']:.1f}",
        points,
        f"{method['tokens_mean']:.1f}",
        tokens,
        f"{method['forward_passes_mean']:.1f}",
    )


def _change(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
