"""Train one value head per captured block, on observed states and on what interventions caused."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.models.value_head import ValueHead
from stir_train.monitoring.console import Meter
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.stores.interventions import InterventionData, InterventionStore
from stir_train.stores.reports import save_report
from stir_train.stores.rollouts import RolloutStore
from stir_train.stores.steering import head_file, load_basis, save_head
from stir_train.train.loop import StepRecord
from stir_train.types.reports import HeadReport, ValueReport
from stir_train.value.calibration import auroc, calibration, reliability
from stir_train.value.examples import HeadData
from stir_train.value.fit import TrainSetup, fit_value_head, predict
from stir_train.value.targets import ValueExamples

LOG_EVERY = 20


def run(context: RunContext, stage: StageDir) -> Finish:
    """Train and calibrate one value head per captured block."""
    config = context.config
    data: InterventionData | None = None
    if config.validation.enabled:
        validation = context.stage("validate")
        validation.require_complete()
        data = InterventionStore(validation).read()
    rollouts = RolloutStore(context.stage("rollout")).require_complete()
    scratch = context.run_dir.scratch(stage.name)
    head_data = HeadData(rollouts, scratch, reads_below=config.value.reads_below)
    for states in head_data.missing(data):
        name = f"states {head_data.states.num_parts}"
        context.world.on_main(name, partial(head_data.states.write, states))
        head_data.states.add(states)
    reports: dict[int, HeadReport] = {}
    heads: dict[int, ValueHead] = {}
    blocks = head_data.observed.states.blocks
    with context.progress("value head", len(blocks) * config.value.num_steps, "steps") as advance:
        for block in blocks:
            heads[block], reports[block] = _train(context, stage, (head_data, data), block, advance)
    return lambda: _finish(context, stage, heads, reports)


def _train(
    context: RunContext,
    stage: StageDir,
    source: tuple[HeadData, InterventionData | None],
    block: int,
    advance: Meter,
) -> tuple[ValueHead, HeadReport]:
    """A block's head, and how well it does on problems that it did not learn from. Collective."""
    config, (head_data, data) = context.config, source
    basis, _ = load_basis(context.stage("basis"))
    train, validation = head_data.split(
        data, basis, block, fraction=config.value.validation_fraction, seed=config.seed
    )

    def on_step(record: StepRecord) -> None:
        advance(1, f"loss {record.loss:.3f}")
        if record.step % LOG_EVERY == 0:
            context.metrics.log(
                "value", {"loss": record.loss}, step=record.step, series=f"block-{block}"
            )

    head, fitted = fit_value_head(
        train,
        validation,
        config.value,
        reads=head_data.reads(block),
        max_points=config.control_points.max_points,
        max_new_tokens=config.generation.max_new_tokens,
        seed=config.seed,
        setup=TrainSetup(
            config.train, context.world, context.checkpoints(stage, f"block-{block}"), on_step
        ),
    )
    advance(config.value.num_steps - fitted.num_steps)
    report = _report(head, train, validation)
    _, intervened = head_data.examples(data, basis, block)
    if intervened is not None:
        caused = intervened.select(torch.isin(intervened.prompt, validation.prompt.unique()))
        after = calibration(predict(head, caused), caused.correct)
        report = dataclasses.replace(report, intervened=after)
    return head, report


def _finish(
    context: RunContext,
    stage: StageDir,
    heads: dict[int, ValueHead],
    reports: dict[int, HeadReport],
) -> Outcome:
    for block, head in heads.items():
        save_head(stage, head_file(block), head, context.resources.described.identity)
    save_report(stage, ValueReport(reports))
    best, found = max(reports.items(), key=lambda item: item[1].overall.auroc)
    summary = {}
    for block, report in reports.items():
        summary[f"auroc_block_{block}"] = report.overall.auroc
        summary[f"ece_block_{block}"] = report.overall.ece
    return Outcome(
        summary,
        f"AUROC {found.overall.auroc:.3f} at block {best} (length alone "
        f"{found.length_only_auroc:.3f}), ECE {found.overall.ece:.3f}",
    )


def _report(head: ValueHead, train: ValueExamples, validation: ValueExamples) -> HeadReport:
    """Calibration on held-out prompts, over all and per control point, beside the baselines."""
    predicted = predict(head, validation)
    rate = float(train.correct.mean())
    per_point = {}
    for point in validation.points.unique().tolist():
        here = validation.points == point
        per_point[point] = calibration(predicted[here], validation.correct[here])
    return HeadReport(
        overall=calibration(predicted, validation.correct),
        per_point=per_point,
        length_only_auroc=max(
            auroc(validation.tokens_so_far, validation.correct),
            auroc(-validation.tokens_so_far, validation.correct),
        ),
        majority_brier=float((validation.correct - rate).square().mean()),
        reliability=tuple(reliability(predicted, validation.correct)),
        temperature=float(head.temperature),
    )
