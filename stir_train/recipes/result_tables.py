"""Results as terminal tables."""

from __future__ import annotations

import json

from rich.box import SIMPLE
from rich.table import Table

from stir_train.evals.intervals import describe_change
from stir_train.recipes.methods import GREEDY, STEERED_METHOD, STUDENT
from stir_train.runtime.context import RunContext
from stir_train.tools.compare import RESULTS_FILE


def results_table(results: dict[str, object]) -> Table:
    """The results as a terminal table."""
    title = f"{results['num_items']} held-out problems of {results['task']}; intervals are 95 %"
    table = Table(title=title, box=SIMPLE, padding=(0, 1))
    for column in (
        "method",
        "accuracy",
        "points gained",
        "tokens",
        "tokens, %",
        "passes",
        "verdict",
    ):
        left = column in ("method", "verdict")
        table.add_column(column, justify="left" if left else "right", no_wrap=column == "method")
    methods = results["methods"]
    assert isinstance(methods, list)
    for row in methods:
        style = "bold" if row["name"] in (STEERED_METHOD, STUDENT) else ""
        figures = (
            f"{row['accuracy']:.1%}",
            _change(row["delta_accuracy"], row["delta_accuracy_ci95"]),
            f"{row['tokens_mean']:.1f}",
            _change(row["delta_tokens_fraction"], row["delta_tokens_ci95"]),
            f"{row['forward_passes_mean']:.1f}",
            describe_change(row["delta_accuracy_ci95"], row["delta_tokens_ci95"]),
        )
        if row["name"] == GREEDY:
            figures = (figures[0], "", figures[2], "", figures[4], "")
        table.add_row(row["name"], *figures, style=style)
    return table


def students_table(results: dict[str, object]) -> Table | None:
    """What students keep of their teacher's gains; None if there are none to compare."""
    students = results["students"]
    assert isinstance(students, list)
    if not students:
        return None
    table = Table(title="students", box=SIMPLE, padding=(0, 1))
    table.add_column("student", no_wrap=True)
    other = students[0]["other"]
    for column in (
        "accuracy kept",
        "saving kept",
        f"points over {other}",
        f"tokens, %, over {other}",
    ):
        table.add_column(column, justify="right")
    for row in students:
        kept = [
            "no gain to keep" if value is None else f"{value:.0%}"
            for value in (row["retention_accuracy"], row["retention_tokens"])
        ]
        table.add_row(
            row["name"],
            *kept,
            _change(row["delta_accuracy"], row["delta_accuracy_ci95"]),
            _change(row["delta_tokens_fraction"], row["delta_tokens_ci95"]),
        )
    return table


def sampled_table(results: dict[str, object]) -> Table | None:
    """What sampling makes of the methods; None if nothing was sampled."""
    rows = results["sampled"]
    assert isinstance(rows, list)
    if not rows:
        return None
    n = rows[0]["num_samples"]
    table = Table(title=f"{n} samples a problem", box=SIMPLE, padding=(0, 1))
    table.add_column("method", no_wrap=True)
    for column in (f"avg@{n}", "points gained", *(f"pass@{k}" for k in rows[0]["pass_at"])):
        table.add_column(column, justify="right")
    table.add_column(f"majority@{n}", justify="right")
    table.add_column("tokens", justify="right")
    for row in rows:
        gained = _change(row["delta_average"], row["delta_average_ci95"])
        table.add_row(
            "base" if row["name"] == GREEDY else row["name"],
            f"{row['average']:.1%}",
            "" if row["name"] == GREEDY else gained,
            *(f"{value:.1%}" for value in row["pass_at"].values()),
            f"{row['majority']:.1%}",
            f"{row['tokens_mean']:.1f}",
        )
    return table


def out_of_domain_tables(results: dict[str, object]) -> list[Table]:
    """What became of other tasks, a table each."""
    tasks = results["out_of_domain"]
    assert isinstance(tasks, list)
    tables = []
    for task in tasks:
        title = f"outside the harvest: {task['num_items']} problems of {task['task']}"
        table = Table(title=title, box=SIMPLE, padding=(0, 1))
        table.add_column("method", no_wrap=True)
        for column in ("accuracy", "points gained", "tokens", "tokens, %"):
            table.add_column(column, justify="right")
        for row in task["methods"]:
            changes = (
                _change(row["delta_accuracy"], row["delta_accuracy_ci95"]),
                _change(row["delta_tokens_fraction"], row["delta_tokens_ci95"]),
            )
            points, tokens = ("", "") if row["name"] == GREEDY else changes
            table.add_row(
                row["name"], f"{row['accuracy']:.1%}", points, f"{row['tokens_mean']:.1f}", tokens
            )
        tables.append(table)
    return tables


def _change(value: float, interval: list[float]) -> str:
    low, high = interval
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def load_results(context: RunContext) -> dict[str, object]:
    """The results of a finished evaluation."""
    path = context.stage("evaluate").file(RESULTS_FILE)
    return dict(json.loads(path.read_text(encoding="utf-8")))
