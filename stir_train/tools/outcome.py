"""What a run came to, once it is evaluated: the tables, and where everything lies."""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.export.adapter import ADAPTER_DIRECTORY
from stir_train.recipes.report import PAGE
from stir_train.recipes.result_tables import (
    load_results,
    out_of_domain_tables,
    results_table,
    sampled_table,
    students_table,
)
from stir_train.runtime.context import RunContext
from stir_train.stores.steering import BASIS_FILE
from stir_train.tools.compare import RESULTS_FILE


def show_outcome(context: RunContext, stages: Sequence[str]) -> None:
    """After an evaluation among these stages: the results table and where everything is."""
    evaluation = context.stage("evaluate")
    if not context.world.is_main or "evaluate" not in stages or not evaluation.is_complete:
        return
    results = load_results(context)
    context.console.print(results_table(results))
    for table in (
        students_table(results),
        sampled_table(results),
        *out_of_domain_tables(results),
    ):
        if table is not None:
            context.console.print(table)
    run = context.run_dir.path
    for label, path in (
        ("control basis", run / "basis" / BASIS_FILE),
        ("LoRA adapter", run / "distill" / ADAPTER_DIRECTORY),
        ("results", evaluation.path / RESULTS_FILE),
        ("report", run / "report" / PAGE),
        ("metrics", context.run_dir.metrics_file),
    ):
        if path.exists():
            context.console.print(f"{label:>14}  {path}", soft_wrap=True)
