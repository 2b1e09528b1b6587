"""Gather a finished run into one HTML page."""

from __future__ import annotations

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tables import load_table
from stir_train.config.load import dump_config
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.evals.report import ReportData, build_examples, render_report
from stir_train.recipes.distill import ADAPTER
from stir_train.recipes.harvest import BASIS, HARVEST, ROLLOUTS, load_report
from stir_train.recipes.intervention_data import VALIDATE
from stir_train.recipes.methods import EVAL, GREEDY, STEERED_METHOD
from stir_train.recipes.result_tables import load_results
from stir_train.recipes.student_plan import STEERED
from stir_train.recipes.tune import TUNE
from stir_train.recipes.value import VALUE
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import GenerationJob, load_rollouts, num_chunks, sampling_params
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import SteeringDecision

REPORT, PAGE = STAGE_DIRECTORIES["report"], "report.html"


def run_report(context: RunContext) -> None:
    """Write the report of a run whose evaluation is finished."""
    stage = context.begin(REPORT, {}, upstream=(EVAL,), decodes=False)
    if stage is None:
        return
    context.world.on_main("report", lambda: _write(context, stage))


def _write(context: RunContext, stage: StageDir) -> None:
    evaluation = context.stage(EVAL)
    greedy, steered = _answers(context, GREEDY), _answers(context, STEERED_METHOD)
    questions = {p.prompt_id: (p.question, p.answer) for p in context.splits["test"]}
    wins, losses = build_examples(greedy, steered, questions, context.described.decode)
    decisions = [
        decision
        for path in evaluation.files(f"{STEERED_METHOD}/decisions-")
        for decision in load_table(path, SteeringDecision)
    ]
    distilled = (STEERED, ADAPTER) if context.config.distill.enabled else ()
    stages = (ROLLOUTS, HARVEST, BASIS, VALIDATE, VALUE, TUNE, *distilled, EVAL)
    page = render_report(
        ReportData(
            title=context.config.name,
            results=load_results(context),
            basis=load_report(context.stage(BASIS)),
            validation=load_report(context.stage(VALIDATE)),
            value=load_report(context.stage(VALUE)),
            tune=load_report(context.stage(TUNE)),
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
    context.metrics.page(REPORT, "page", page)
    context.report_done(stage, {"bytes": len(page)}, f"{stage.path / PAGE}")


def _answers(context: RunContext, method: str) -> list[GradedRollout]:
    job = GenerationJob(
        prompts=context.splits["test"],
        num_samples=1,
        sampling=sampling_params(context, greedy=True),
        prefix=f"{method}/",
    )
    stage = context.stage(EVAL)
    chunks = range(num_chunks(context, job))
    return [graded for chunk in chunks for graded in load_rollouts(stage, job.prefix, chunk)]
