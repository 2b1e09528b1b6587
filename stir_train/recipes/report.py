"""Gather a finished run into one HTML page."""

from __future__ import annotations

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.load import dump_config
from stir_train.evals.report import ReportData, build_examples, render_report
from stir_train.recipes.methods import GREEDY, STEERED_METHOD
from stir_train.recipes.result_tables import load_results
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.stores.report_file import load_report
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.rollout import GradedRollout

PAGE = "report.html"


def run(context: RunContext, stage: StageDir) -> Finish:
    """Write the report of a run whose evaluation is finished."""
    return lambda: _write(context, stage)


def _write(context: RunContext, stage: StageDir) -> Outcome:
    evaluation = context.stage("evaluate")
    greedy, steered = _answers(context, GREEDY), _answers(context, STEERED_METHOD)
    questions = {p.prompt_id: (p.question, p.answer) for p in context.splits["test"]}
    wins, losses = build_examples(greedy, steered, questions, context.resources.described.decode)
    decisions = RolloutStore(evaluation).decisions(STEERED_METHOD)
    distilled = ("steer", "distill") if context.config.distill.enabled else ()
    stages = ("rollout", "harvest", "basis", "validate", "value", "tune", *distilled, "evaluate")
    page = render_report(
        ReportData(
            title=context.config.name,
            results=load_results(context),
            basis=load_report(context.stage("basis")),
            validation=load_report(context.stage("validate")),
            value=load_report(context.stage("value")),
            tune=load_report(context.stage("tune")),
            summaries={name: context.stage(name).summary() for name in stages},
            decisions=decisions,
            wins=wins,
            losses=losses,
            lineage={name: context.stage(name).fingerprint() for name in stages},
            config=dump_config(context.config),
        )
    )
    with stage.writing(PAGE) as path:
        path.write_text(page, encoding="utf-8")
    context.metrics.page("report", "page", page)
    return Outcome({"bytes": len(page)}, f"{stage.path / PAGE}")


def _answers(context: RunContext, method: str) -> list[GradedRollout]:
    return RolloutStore(context.stage("evaluate")).read(method)
