"""Gather a finished run into one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.answering.methods import GREEDY, STEERED
from stir_train.artifacts.run_dir import StageDir
from stir_train.config.load import dump_yaml
from stir_train.config.pipeline import STAGES, stages_off
from stir_train.evals.report import (
    PAGE,
    ReportData,
    build_changes,
    build_examples,
    render_report,
)
from stir_train.runtime.context import Finish, Outcome, RunContext
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
    """Write the report of a run whose evaluation is finished."""
    return lambda: _write(context, stage)


def _write(context: RunContext, stage: StageDir) -> Outcome:
    evaluation = context.stage("evaluate")
    rollouts = RolloutStore(evaluation)
    greedy, steered = rollouts.read(GREEDY), rollouts.read(STEERED)
    questions = {p.prompt_id: (p.question, p.answer) for p in context.splits["test"]}
    wins, losses = build_examples(greedy, steered, questions, context.resources.described.decode)
    decisions = rollouts.decisions(STEERED)
    made = [found.name for found in STAGES if found.is_on(context.config)]
    stages = [name for name in made if name != stage.name]
    page = render_report(
        ReportData(
            title=context.config.name,
            results=load_results(evaluation),
            directions=_read(context, "directions", DirectionsReport),
            basis=_read(context, "basis", BasisReport),
            validation=_read(context, "validate", ValidationReport),
            value=_read(context, "value", ValueReport),
            tune=load_report(context.stage("tune"), TuneReport),
            summaries={name: context.stage(name).summary() for name in stages},
            decisions=decisions,
            changes=build_changes(greedy, steered, questions),
            wins=wins,
            losses=losses,
            lineage={name: context.stage(name).fingerprint() for name in stages},
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


def _read(context: RunContext, name: str, kind: type[Record]) -> Record | None:
    """A stage's report; None if the run leaves the stage out."""
    if name in stages_off(context.config):
        return None
    return load_report(context.stage(name), kind)
