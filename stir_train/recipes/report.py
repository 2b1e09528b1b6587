"""Gather a finished run into one HTML page."""

from __future__ import annotations

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tables import load_table
from stir_train.config.load import dump_config
from stir_train.evals.report import ReportData, build_examples, render_report
from stir_train.recipes.harvest import load_report
from stir_train.recipes.methods import GREEDY, STEERED_METHOD
from stir_train.recipes.result_tables import load_results
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import GenerationJob, load_rollouts, num_chunks, sampling_params
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import SteeringDecision

PAGE = "report.html"


def run(context: RunContext, stage: StageDir) -> Finish:
    """Write the report of a run whose evaluation is finished."""
    return lambda: _write(context, stage)


def _write(context: RunContext, stage: StageDir) -> Outcome:
    evaluation = context.stage("evaluate")
    greedy, steered = _answers(context, GREEDY), _answers(context, STEERED_METHOD)
    questions = {p.prompt_id: (p.question, p.answer) for p in context.splits["test"]}
    wins, losses = build_examples(greedy, steered, questions, context.resources.described.decode)
    decisions = [
        decision
        for path in evaluation.files(f"{STEERED_METHOD}/decisions-")
        for decision in load_table(path, SteeringDecision)
    ]
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
    job = GenerationJob(
        prompts=context.splits["test"],
        num_samples=1,
        sampling=sampling_params(context, greedy=True),
        prefix=f"{method}/",
    )
    stage = context.stage("evaluate")
    chunks = range(num_chunks(context, job))
    return [graded for chunk in chunks for graded in load_rollouts(stage, job.prefix, chunk)]
