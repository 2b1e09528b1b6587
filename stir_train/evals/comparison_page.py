"""One self-contained HTML page for several runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from stir_train.evals.frontier import frontier
from stir_train.evals.report import page_environment
from stir_train.types.results import MethodMetrics, Results


@dataclass(frozen=True)
class ComparedRun:
    """A run's name, its results, and its frontier as an inline image."""

    name: str
    results: Results
    figure: Markup


def render_comparison(results: Mapping[str, Results]) -> str:
    """Render the page; it needs no other file and no network.

    Args:
        results: By the run's name.
    """
    runs = [
        ComparedRun(name, found, frontier([row.metrics for row in found.methods]))
        for name, found in results.items()
    ]
    methods = dict.fromkeys(row.name for run in runs for row in run.results.methods)
    by_method = {method: [_figures(run.results, method) for run in runs] for method in methods}
    template = page_environment().get_template("comparison.html.j2")
    return template.render(runs=runs, by_method=by_method, warnings=warnings_of(results))


def warnings_of(results: Mapping[str, Results]) -> list[str]:
    """What keeps figures of different runs from being put side by side."""
    found = []
    items: dict[str, dict[str, list[str]]] = {}
    for name, result in results.items():
        by_items = items.setdefault(result.task, {})
        by_items.setdefault(result.items_sha256, []).append(name)
        if result.test_openings > 1:
            found.append(
                f"{name}: its test split was opened for {result.test_openings} choices; intervals "
                "are honest for the first alone"
            )
    for task, by_items in items.items():
        if len(by_items) > 1:
            groups = " | ".join(", ".join(names) for names in by_items.values())
            found.append(f"{task}: these runs answered different test items: {groups}")
    return found


def _figures(results: Results, method: str) -> MethodMetrics | None:
    row = results.find(method)
    return None if row is None else row.metrics
