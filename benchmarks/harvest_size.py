"""What a basis steers along, and how many problems it is made from: differences of means or reward gradients.

Usage: ``python benchmarks/harvest_size.py CONFIG [SETTING=VALUE ...] --output RUNS [--sizes 16 32 64 128 256]
[--plot FILE.svg]``. For every size and both kinds, the whole pipeline runs from its own rollouts to the
held-out comparison, without controls and students; runs that are done are read. Printed are the chosen controller and
the published rule over the same basis, both on the test split, with 95 % paired intervals.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rich.table import Table

from stir_train.artifacts.run_dir import RunDir
from stir_train.evals.plots import new_figure, svg_file
from stir_train.monitoring.console import make_console
from stir_train.tools.compare import read_results
from stir_train.types.results import MethodMetrics, Results

KINDS = {"difference": "differences of means", "reward_gradient": "reward gradients"}
METHODS = {"stir": "chosen controller", "stir-published": "published rule"}
ALONE = ("evaluate.controls=false", "distill.enabled=false")


def results_of(
    config: str, output: Path, kind: str, size: int, settings: list[str]
) -> Results | None:
    """Held-out results of one run, which is made or finished first; None where it found nothing to steer."""
    name = f"{kind}-{size}"
    varied = (f"name={name}", f"basis.directions={kind}", f"splits.num_harvest={size}")
    command = ["run", config, f"output_dir={output}", *varied, *ALONE, *settings]
    subprocess.run([sys.executable, "-m", "stir_train", *command], check=True)
    is_evaluated = RunDir(output / name).stage("evaluate").is_complete
    return read_results(output / name) if is_evaluated else None


def row_of(results: Results | None, method: str) -> MethodMetrics | None:
    """A method's figures, if there are any."""
    row = None if results is None else results.find(method)
    return None if row is None else row.metrics


def in_words(row: MethodMetrics | None) -> str:
    """Accuracy, points gained with their interval, and tokens against greedy decoding."""
    if row is None:
        return "-"
    low, high = (100 * end for end in row.delta_accuracy_ci95)
    return (
        f"{row.accuracy:.1%}, {100 * row.delta_accuracy:+.1f} [{low:+.1f}, {high:+.1f}], tokens "
        f"{row.delta_tokens_fraction:+.1%}"
    )


def plot(found: dict[tuple[str, int], Results | None], sizes: list[int], path: Path) -> None:
    """Accuracy of the chosen controller against harvest problems, a line a kind."""
    figure, axes = new_figure(6.0, 3.6)
    for kind, label in KINDS.items():
        rows = [row_of(found[kind, size], "stir") for size in sizes]
        made = [(size, row) for size, row in zip(sizes, rows, strict=True) if row is not None]
        at = [100 * row.accuracy for _, row in made]
        below = [100 * (row.accuracy - row.accuracy_ci95[0]) for _, row in made]
        above = [100 * (row.accuracy_ci95[1] - row.accuracy) for _, row in made]
        axes.errorbar(
            [size for size, _ in made], at, yerr=[below, above], label=label, marker="o", capsize=2
        )
    greedy = row_of(found["difference", sizes[-1]], "greedy")
    if greedy is not None:
        axes.axhline(100 * greedy.accuracy, linestyle="--", color="gray", label="greedy")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("harvest problems")
    axes.set_ylabel("accuracy (%)")
    axes.legend(frameon=False)
    path.write_text(svg_file(figure))


def main() -> None:
    """Run both kinds at every size, and print and draw what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    found = {
        (kind, size): results_of(arguments.config, arguments.output, kind, size, arguments.settings)
        for size in arguments.sizes
        for kind in KINDS
    }
    table = Table("harvest problems", "basis of", *METHODS.values())
    for (kind, size), results in found.items():
        cells = (in_words(row_of(results, method)) for method in METHODS)
        table.add_row(str(size), KINDS[kind], *cells)
    make_console().print(table)
    if arguments.plot is not None:
        plot(found, sorted(arguments.sizes), arguments.plot)


if __name__ == "__main__":
    main()
