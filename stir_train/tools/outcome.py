"""What a run came to, once it is evaluated: the tables, and where everything lies."""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.evals.report import PAGE
from stir_train.evals.tables import tables
from stir_train.export.adapter import ADAPTER_DIRECTORY
from stir_train.runtime.context import RunContext
from stir_train.stores.results import RESULTS_FILE, load_results
from stir_train.stores.steering import BASIS_FILE


def show_outcome(context: RunContext, stages: Sequence[str]) -> None:
    """After an evaluation among these stages: the results table and where everything is."""
    evaluation = context.stage("evaluate")
    if not context.world.is_main or "evaluate" not in stages or not evaluation.is_complete:
        return
    for table in tables(load_results(evaluation)):
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
