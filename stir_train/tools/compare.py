"""Put the results of several finished runs side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from stir_train.artifacts.atomic import write_text
from stir_train.artifacts.run_dir import RunDir
from stir_train.evals.comparison_page import render_comparison
from stir_train.evals.frontier import frontiers, undominated
from stir_train.evals.tables import BASELINE, change
from stir_train.stores.results import load_run_results
from stir_train.types.results import MethodMetrics, Results

COLUMNS = (
    "run",
    "method",
    "settings",
    "accuracy",
    "points gained",
    "tokens",
    "tokens, %",
    "passes",
    "cut off",
    "no marker",
)
NUM_TEXT_COLUMNS = 3
SETTINGS_WIDTH = 24
"""What 80 columns leave to them."""


def read_results(run: Path) -> Results:
    """The results of a run whose evaluation is finished, checksums verified.

    Raises:
        ArtifactError: If it is not finished, or damaged.
    """
    return load_run_results(run, "evaluate")


def without_results(runs: Sequence[Path]) -> list[Path]:
    """Those of some directories, as of ``runs/*``, in which no evaluation is finished."""
    return [run for run in runs if not RunDir(run).stage("evaluate").is_complete]


def result_rows(runs: Sequence[Path]) -> list[tuple[str, ...]]:
    """One row a run and method, tasks outside the harvest last; deltas are from greedy decoding."""
    rows: list[tuple[str, ...]] = []
    for run_name, results in _results_by_name(runs).items():
        labels = {row.name: row.label for row in results.methods}
        tables = [(run_name, tuple(row.metrics for row in results.methods))]
        tables += [(f"{run_name} on {o.task}", o.methods) for o in results.out_of_domain]
        for name, methods in tables:
            rows += [(name, *_figures(method, labels[method.name])) for method in methods]
    return rows


def write_page(runs: Sequence[Path], target: Path) -> None:
    """Write one HTML page of several runs."""
    write_text(target, render_comparison(_results_by_name(runs)))


def as_table(rows: Sequence[tuple[str, ...]]) -> Table:
    """Rows for a terminal of 80 columns: two lines a method, as the two lines of the header say."""
    table = Table(
        box=SIMPLE,
        title="held-out test items; 95 % paired intervals",
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("method\n  settings", overflow="fold")
    for column in (
        "accuracy\npoints gained",
        "tokens (passes)\nchange of tokens, %",
        "cut off\nno marker",
    ):
        table.add_column(column, justify="right")
    before = ""
    for row in rows:
        run, method, settings, accuracy, points, tokens, change_of_tokens, passes, cut, unmarked = (
            row
        )
        if run != before:
            table.add_section()
            table.add_row(run, style="bold")
            before = run
        table.add_row(
            "\n  ".join([method, *_folded(settings)]),
            f"{accuracy}%\n{points}",
            f"{tokens} ({passes})\n{change_of_tokens}",
            f"{cut}\n{unmarked}",
        )
    return table


def _folded(settings: str) -> list[str]:
    """Lines that end between settings, which hyphens join."""
    lines: list[str] = []
    for piece in re.split(r"(?<=-)", settings):
        if lines and len(lines[-1] + piece) <= SETTINGS_WIDTH:
            lines[-1] += piece
        elif piece:
            lines.append(piece)
    return lines


def as_markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as a Markdown table."""
    rule = ["---" if i < NUM_TEXT_COLUMNS else "---:" for i in range(len(COLUMNS))]
    lines = [COLUMNS, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_plot(runs: Sequence[Path], target: Path) -> None:
    """Write one SVG file with the frontier of every run."""
    found = _results_by_name(runs)
    rows = {name: [row.metrics for row in results.methods] for name, results in found.items()}
    write_text(target, frontiers(rows))


def by_method_markdown(runs: Sequence[Path]) -> str:
    """One Markdown row a method, five columns a run, in the order in which methods first occur.

    A method that a run does not have, as one that does not apply there, has a dash. Bold are those that no other
    of the run equals in accuracy at fewer tokens.
    """
    found = _results_by_name(runs)
    methods = dict.fromkeys(row.name for results in found.values() for row in results.methods)
    heads = [
        head
        for run in found
        for head in (f"{run}: accuracy", "points", "tokens, %", "cut off", "no marker")
    ]
    best = {
        run: {row.name for row in undominated([row.metrics for row in results.methods])}
        for run, results in found.items()
    }
    lines = [["method", *heads], ["---", *["---:"] * len(heads)]]
    for method in methods:
        cells = [method]
        for run, results in found.items():
            row = results.find(method)
            if row is None:
                cells += ["-"] * 5
                continue
            figures = _figures(row.metrics, row.label)
            accuracy = f"**{figures[2]}**" if method in best[run] else figures[2]
            cells += [accuracy, figures[3], figures[5], *figures[7:9]]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _results_by_name(runs: Sequence[Path]) -> dict[str, Results]:
    """Results in the order given; runs that share a name go by their paths."""
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else str(run): read_results(run) for run in runs}


def _figures(method: MethodMetrics, label: str) -> tuple[str, ...]:
    is_baseline = method.name == BASELINE
    points = change(method.delta_accuracy, method.delta_accuracy_ci95)
    tokens = change(method.delta_tokens_fraction, method.delta_tokens_ci95)
    return (
        method.name,
        "" if label == method.name else label,
        f"{100 * method.accuracy:.1f}",
        "" if is_baseline else points,
        f"{method.tokens_mean:.1f}",
        "" if is_baseline else tokens,
        f"{method.forward_passes_mean:.1f}",
        f"{method.truncated_rate:.1%}",
        f"{method.no_marker_rate:.1%}",
    )
