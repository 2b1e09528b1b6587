"""Train one value head per captured block, on observed states and on what interventions caused."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import save_tensors
from stir_train.models.value_head import ValueHead
from stir_train.monitoring.console import progress
from stir_train.recipes.harvest import model_metadata, save_report
from stir_train.recipes.intervention_data import read_blocks, value_examples
from stir_train.recipes.validate import finished_intervention_data
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.steering.artifacts import head_file
from stir_train.train.loop import StepRecord
from stir_train.value.calibration import auroc, calibration, reliability
from stir_train.value.fit import TrainSetup, fit_value_head
from stir_train.value.targets import ValueExamples

LOG_EVERY = 20


def run(context: RunContext, stage: StageDir) -> Finish:
    """Train and calibrate one value head per captured block."""
    config = context.config
    replays = finished_intervention_data(context)
    reports: dict[str, Any] = {}
    heads: dict[int, ValueHead] = {}
    total = len(context.resources.captured_blocks) * config.value.num_steps
    with progress(context.console, "value head", total, "steps") as advance:
        for block in context.resources.captured_blocks:
            observed, replayed = value_examples(context, replays, block)
            everything = ValueExamples.concatenate([observed, *([replayed] if replayed else [])])
            generator = torch.Generator().manual_seed(config.seed)
            train, validation = everything.split_by_prompt(
                config.value.validation_fraction, generator
            )

            def on_step(record: StepRecord, block: int = block) -> None:
                advance(1, f"loss {record.loss:.3f}")
                if record.step % LOG_EVERY == 0:
                    context.metrics.log(
                        "value", {f"block_{block}/loss": record.loss}, step=record.step
                    )

            heads[block], fitted = fit_value_head(
                train,
                validation,
                config.value,
                reads=read_blocks(context, block),
                max_points=config.control_points.max_points,
                max_new_tokens=config.generation.max_new_tokens,
                seed=config.seed,
                setup=TrainSetup(
                    config.train,
                    context.world,
                    context.checkpoints(stage, f"block-{block}"),
                    on_step,
                ),
            )
            advance(config.value.num_steps - fitted.num_steps)
            held_out = validation.prompt.unique()
            reports[str(block)] = _value_report(heads[block], train, validation)
            if replayed is not None:
                caused = replayed.select(torch.isin(replayed.prompt, held_out))
                predicted, _ = heads[block].p_correct(caused.states, caused.points, caused.impulses)
                reports[str(block)]["intervened"] = dataclasses.asdict(
                    calibration(predicted, caused.correct)
                )
    return lambda: _finish(context, stage, heads, reports)


def _finish(
    context: RunContext, stage: StageDir, heads: dict[int, ValueHead], reports: dict[str, Any]
) -> Outcome:
    for block, head in heads.items():
        save_tensors(stage, head_file(block), head.state_dict(), model_metadata(context))
    save_report(stage, reports)
    best = max(reports, key=lambda block: float(reports[block]["overall"]["auroc"]))
    summary = {
        f"{figure}_block_{block}": report["overall"][figure]
        for block, report in reports.items()
        for figure in ("auroc", "ece")
    }
    return Outcome(
        summary,
        f"AUROC {reports[best]['overall']['auroc']:.3f} at block {best} (length alone "
        f"{reports[best]['length_only_auroc']:.3f}), ECE {reports[best]['overall']['ece']:.3f}",
    )


def _value_report(
    head: ValueHead, train: ValueExamples, validation: ValueExamples
) -> dict[str, Any]:
    """Calibration on held-out prompts, over all and per control point, beside the baselines."""
    predicted, _ = head.p_correct(validation.states, validation.points, validation.impulses)
    rate = float(train.correct.mean())
    per_point = {}
    for point in validation.points.unique().tolist():
        here = validation.points == point
        per_point[str(point)] = dataclasses.asdict(
            calibration(predicted[here], validation.correct[here])
        )
    return {
        "overall": dataclasses.asdict(calibration(predicted, validation.correct)),
        "per_point": per_point,
        "length_only_auroc": max(
            auroc(validation.tokens_so_far, validation.correct),
            auroc(-validation.tokens_so_far, validation.correct),
        ),
        "majority_brier": float((validation.correct - rate).square().mean()),
        "reliability": [dataclasses.asdict(b) for b in reliability(predicted, validation.correct)],
        "temperature": float(head.temperature),
    }
