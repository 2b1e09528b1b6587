"""What a run came to, once it is over: the tables, the verdict, and where everything lies."""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.config.pipeline import stages_off
from stir_train.evals.report import PAGE
from stir_train.evals.tables import tables
from stir_train.evals.verdict import run_verdict
from stir_train.runtime.context import RunContext
from stir_train.runtime.upstream import end_of_run
from stir_train.stores.adapters import ADAPTER_DIRECTORY
from stir_train.stores.reports import load_report
from stir_train.stores.results import RESULTS_FILE, load_results
from stir_train.stores.steering_files import BASIS_FILE
from stir_train.types.results import TuneReport


def show_outcome(context: RunContext, stages: Sequence[str]) -> None:
    """After an evaluation among these stages: tables, the verdict, and where everything is.

    After a run that ended early: where its report is.
    """
    evaluation, run = context.stage("evaluate"), context.run_dir.path
    if not context.world.is_main or "evaluate" not in stages:
        return
    if evaluation.is_complete:
        results = load_results(evaluation)
        for table in tables(results):
            context.console.print(table)
        for sentence in run_verdict(results, load_report(context.stage("tune"), TuneReport)):
            context.console.print(f"  {sentence}")
    elif end_of_run(context.run_dir, stages_off(context.config)) is None:
        return
    for label, path in (
        ("control basis", run / "basis" / BASIS_FILE),
        ("LoRA adapter", run / "distill" / ADAPTER_DIRECTORY),
        ("results", evaluation.path / RESULTS_FILE),
        ("report", run / "report" / PAGE),
        ("metrics", context.run_dir.metrics_file),
    ):
        if path.exists():
            context.console.print(f"{label:>14}  {path}", soft_wrap=True)
