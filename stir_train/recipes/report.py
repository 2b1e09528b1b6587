"""Gather a finished run into one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.answering.methods import GREEDY, STEERED, student_label
from stir_train.artifacts.attempts import makers_of
from stir_train.artifacts.run_dir import StageDir
from stir_train.config.load import dump_yaml
from stir_train.config.pipeline import STAGES, stages_off
from stir_train.evals.report import (
    PAGE,
    Evaluation,
    ReportData,
    build_changes,
    build_examples,
    build_samples,
    render_report,
)
from stir_train.evals.verdict import run_verdict
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.upstream import end_of_run, stages_left_out, students_taught
from stir_train.stores.metric_log import read_metric_log
from stir_train.stores.reports import Record, load_report
from stir_train.stores.results import load_results
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.reports import (
    BasisReport,
    DirectionsReport,
    ValidationReport,
    ValueReport,
)
from stir_train.types.results import TuneReport


def run(context: RunContext, stage: StageDir) -> Finish:
    """Write the report of a run whose evaluation is finished, or that ended before it."""
    return lambda: _write(context, stage)


def _write(context: RunContext, stage: StageDir) -> Outcome:
    left_out = stages_left_out(context.run_dir, context.config)
    made = [found.name for found in STAGES if found.is_on(context.config)]
    stages = [name for name in made if name != stage.name and name not in left_out]
    end = end_of_run(context.run_dir, stages_off(context.config))
    evaluation = _evaluation(context) if end is None else None
    if evaluation is not None:
        verdict = run_verdict(evaluation.results, evaluation.tune)
    else:
        assert end is not None, "what did not end early is evaluated"
        verdict = [f"The run ended at {end.stage}: {end.reason}."]
    page = render_report(
        ReportData(
            title=context.config.name,
            model=context.resources.described.identity.name,
            task=context.config.task.name,
            verdict=verdict,
            evaluation=evaluation,
            directions=_read(context, "directions", DirectionsReport),
            basis=_read(context, "basis", BasisReport),
            validation=_read(context, "validate", ValidationReport),
            value=_read(context, "value", ValueReport),
            summaries={name: context.stage(name).summary() for name in stages},
            lineage={name: context.stage(name).fingerprint() for name in stages},
            logs=read_metric_log(context.run_dir.metrics_file),
            makers=makers_of(context.run_dir.path),
            config=_settings(context, stages),
        )
    )
    with stage.writing(PAGE) as path:
        path.write_text(page, encoding="utf-8")
    context.metrics.page("report", "page", page)
    return Outcome({"bytes": len(page)}, f"{stage.path / PAGE}")


def _settings(context: RunContext, stages: Sequence[str]) -> str:
    """The settings that each stage was made with, as it keeps them: today's may be others."""
    model = context.resources.described.identity
    made = {"name": context.config.name, "model": {"name": model.name, "revision": model.revision}}
    return dump_yaml(made | {name: context.stage(name).settings() for name in stages})


def _evaluation(context: RunContext) -> Evaluation:
    """Results, and what steering changed in the answers: nothing where the run abstains."""
    stage = context.stage("evaluate")
    results, rollouts = load_results(stage), RolloutStore(stage)
    row = results.find(STEERED)
    answered_as = GREEDY if row is not None and row.never_acts else STEERED
    greedy, steered = rollouts.read(GREEDY), rollouts.read(answered_as)
    questions = {p.prompt_id: (p.question, p.answer) for p in context.splits["test"]}
    answers = {GREEDY: greedy, answered_as: steered}
    for name in students_taught(context.run_dir, context.config):
        answers[student_label(name)] = rollouts.read(student_label(name))
    wins, losses = build_examples(greedy, steered, questions, context.resources.described.decode)
    return Evaluation(
        results=results,
        tune=load_report(context.stage("tune"), TuneReport),
        decisions=[] if answered_as == GREEDY else rollouts.decisions(STEERED),
        changes=build_changes(greedy, steered, questions),
        wins=wins,
        losses=losses,
        samples=build_samples(answers, questions),
    )


def _read(context: RunContext, name: str, kind: type[Record]) -> Record | None:
    """A stage's report; None if the run leaves the stage out."""
    left_out = stages_left_out(context.run_dir, context.config)
    if name in stages_off(context.config) or name in left_out:
        return None
    return load_report(context.stage(name), kind)
