"""Results as terminal tables that fit 80 columns."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.table import Table

from stir_train.evals.intervals import describe_method
from stir_train.types.reports import DirectionsReport
from stir_train.types.results import Interval, MethodMetrics, OutOfDomainResults, Results

BASELINE = "greedy"
"""Its row has no differences."""
BOLD = ("stir", "lora-student")


def results_table(results: Results) -> Table:
    """The held-out comparison, two lines a method, as the two lines of the header say."""
    of = f"{results.task} ({results.split})" if "official" in results.split else results.task
    table = _table(f"{results.num_items} held-out problems of {of}; intervals are 95 %")
    _add_columns(table)
    for row in results.methods:
        _add_method(table, row.metrics, "abstains" if row.never_acts else verdict(row.metrics))
    return table


def _add_columns(table: Table) -> None:
    table.add_column("method\n  verdict", overflow="fold")
    for column in (
        "accuracy\npoints gained",
        "tokens (passes)\nchange of tokens, %",
        "cut off\nno marker",
    ):
        table.add_column(column, justify="right")


def _add_method(table: Table, figures: MethodMetrics, word: str) -> None:
    """Two lines, as the two of the header say."""
    below = (f"  {word}", _points(figures), _tokens(figures))
    if figures.name == BASELINE:
        below = ("", "", "")
    table.add_row(
        f"{figures.name}\n{below[0]}",
        f"{figures.accuracy:.1%}\n{below[1]}",
        f"{figures.tokens_mean:.1f} ({figures.forward_passes_mean:.1f})\n{below[2]}",
        f"{figures.truncated_rate:.1%}\n{figures.no_marker_rate:.1%}",
        style="bold" if figures.name in BOLD else "",
    )


def students_table(results: Results) -> Table | None:
    """What students keep of their teacher's gains; None if there are none to compare."""
    if not results.students:
        return None
    other = results.students[0].other
    table = _table(f"students; points and tokens against {other}")
    table.add_column("student", overflow="fold")
    for column in ("accuracy\nkept", "saving\nkept", "points", "tokens, %"):
        table.add_column(column, justify="right")
    for row in results.students:
        kept = [
            "no gain" if value is None else f"{value:.0%}"
            for value in (row.retention_accuracy, row.retention_tokens)
        ]
        table.add_row(
            row.name,
            *kept,
            change(row.delta_accuracy, row.delta_accuracy_ci95),
            change(row.delta_tokens_fraction, row.delta_tokens_ci95),
        )
    return table


def sampled_table(results: Results) -> Table | None:
    """What sampling makes of the methods; None if nothing was sampled."""
    if not results.sampled:
        return None
    first = results.sampled[0]
    table = _table(f"{first.num_samples} samples a problem")
    table.add_column("method", overflow="fold")
    table.add_column(f"avg@{first.num_samples}\npoints gained", justify="right")
    for k in first.pass_at:
        table.add_column(f"pass\n@{k}", justify="right")
    table.add_column(f"majority@{first.num_samples}\ntokens", justify="right")
    for row in results.sampled:
        is_baseline = row.name == BASELINE
        table.add_row(
            "base" if is_baseline else row.name,
            f"{row.average:.1%}\n"
            + ("" if is_baseline else change(row.delta_average, row.delta_average_ci95)),
            *(f"{value:.1%}" for value in row.pass_at.values()),
            f"{row.majority:.1%}\n{row.tokens_mean:.1f}",
        )
    return table


def out_of_domain_table(found: OutOfDomainResults) -> Table:
    """What became of a task outside the harvest."""
    table = _table(f"outside the harvest: {found.num_items} problems of {found.task}")
    _add_columns(table)
    for row in found.methods:
        _add_method(table, row, verdict(row))
    return table


def directions_table(report: DirectionsReport) -> Table:
    """Whether there is anything to steer with, largest relative gain first; what passes is bold."""
    table = _table(
        f"gain of reward per unit of norm, {report.num_used} rollouts of {report.num_mixed} problems"
    )
    table.add_column("place", overflow="fold")
    for column in (
        "block",
        "gain",
        "above\nchance",
        "split\nhalf",
        "permuted\nmax",
        "p, all\nrows",
        "state\nnorm",
        "",
    ):
        table.add_column(column, justify="right")
    for row in sorted(report.table, key=lambda row: -row.relative_gain):
        passes = row.passes(report.significance)
        table.add_row(
            row.place,
            str(row.block),
            f"{row.gain:.4f}",
            f"{row.gain_above_chance:.4f}",
            f"{row.split_half_cosine:.2f}",
            f"{row.permuted_max:.4f}",
            f"{row.family_p_value:.3f}",
            f"{row.state_norm:.1f}",
            "passes" if passes else "",
            style="bold" if passes else "",
        )
    return table


def tables(results: Results) -> list[Table]:
    """All tables that the results have something for."""
    found = [results_table(results), students_table(results), sampled_table(results)]
    return [
        *(table for table in found if table is not None),
        *(out_of_domain_table(found) for found in results.out_of_domain),
    ]


def change(value: float, interval: Interval) -> str:
    """A difference and its interval, in hundredths."""
    low, high = interval
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def verdict(figures: MethodMetrics) -> str:
    """The word on a method's difference from greedy decoding."""
    return describe_method(figures.name, figures.delta_accuracy_ci95, figures.delta_tokens_ci95)


def _points(figures: MethodMetrics) -> str:
    return change(figures.delta_accuracy, figures.delta_accuracy_ci95)


def _tokens(figures: MethodMetrics) -> str:
    return change(figures.delta_tokens_fraction, figures.delta_tokens_ci95)


def _table(title: str) -> Table:
    return Table(
        title=f"\n{title}", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )
