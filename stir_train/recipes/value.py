"""Train one value head per captured block, on observed states and on what interventions caused."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import save_tensors
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.models.value_head import ValueHead
from stir_train.monitoring.console import progress
from stir_train.recipes.context import RunContext
from stir_train.recipes.harvest import (
    ROLLOUTS,
    load_basis,
    model_metadata,
    rollout_chunks,
    save_report,
)
from stir_train.recipes.validate import VALIDATE, load_interventions, load_null
from stir_train.steering.artifacts import head_file
from stir_train.train.loop import StepRecord
from stir_train.types.trajectory import CapturedStates
from stir_train.value.calibration import auroc, calibration, reliability
from stir_train.value.fit import TrainSetup, fit_value_head
from stir_train.value.targets import ValueExamples, build_examples, build_intervened

VALUE = STAGE_DIRECTORIES["value"]
LOG_EVERY = 20


@dataclasses.dataclass(frozen=True)
class BlockExamples:
    """What one block's head learns from, by where it comes from."""

    observed: ValueExamples
    intervened: ValueExamples | None


def run_value(context: RunContext) -> None:
    """Train and calibrate one value head per captured block."""
    config = context.config
    settings = {
        "value": config.value,
        "max_points": config.control_points.max_points,
        "max_new_tokens": config.generation.max_new_tokens,
        "seed": config.seed,
        "num_threads": config.num_threads,
    }
    stage = context.begin(VALUE, settings, upstream=(ROLLOUTS, VALIDATE), decodes=False)
    if stage is None:
        return
    examples = _all_examples(context)
    reports: dict[str, Any] = {}
    heads: dict[int, ValueHead] = {}
    total = len(examples) * config.value.num_steps
    with progress(context.console, "value head", total, "steps") as advance:
        for block, found in examples.items():
            parts = [found.observed, *([found.intervened] if found.intervened else [])]
            everything = ValueExamples.concatenate(parts)
            generator = torch.Generator().manual_seed(config.seed)
            train, validation = everything.split_by_prompt(
                config.value.validation_fraction, generator
            )

            def on_step(record: StepRecord, block: int = block) -> None:
                advance(1, f"loss {record.loss:.3f}")
                if record.step % LOG_EVERY == 0:
                    context.metrics.log(
                        VALUE, {f"block_{block}/loss": record.loss}, step=record.step
                    )

            heads[block], fitted = fit_value_head(
                train,
                validation,
                config.value,
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
            if found.intervened is not None:
                caused = found.intervened.select(torch.isin(found.intervened.prompt, held_out))
                predicted, _ = heads[block].p_correct(caused.states, caused.points)
                reports[str(block)]["intervened"] = dataclasses.asdict(
                    calibration(predicted, caused.correct)
                )
    context.world.on_main("value", lambda: _finish(context, stage, heads, reports))


def _finish(
    context: RunContext, stage: StageDir, heads: dict[int, ValueHead], reports: dict[str, Any]
) -> None:
    for block, head in heads.items():
        save_tensors(stage, head_file(block), head.state_dict(), model_metadata(context))
    save_report(stage, reports)
    best = max(reports, key=lambda block: float(reports[block]["overall"]["auroc"]))
    summary = {
        f"{figure}_block_{block}": report["overall"][figure]
        for block, report in reports.items()
        for figure in ("auroc", "ece")
    }
    context.report_done(
        stage,
        summary,
        f"AUROC {reports[best]['overall']['auroc']:.3f} at block {best} (length alone "
        f"{reports[best]['length_only_auroc']:.3f}), ECE {reports[best]['overall']['ece']:.3f}",
    )


def _all_examples(context: RunContext) -> dict[int, BlockExamples]:
    """Observed states of sampled rollouts and, after validation, of greedy ones and of trials."""
    chunks = rollout_chunks(context)
    graded = [item for part, _ in chunks for item in part]
    captured = CapturedStates.concatenate([states for _, states in chunks])
    prompts = {prompt.prompt_id: i for i, prompt in enumerate(context.splits["harvest"])}
    trials = load_interventions(context)
    if not trials:
        return {
            block: BlockExamples(build_examples(graded, captured, block, prompts), None)
            for block in captured.blocks
        }
    null, basis = load_null(context), load_basis(context)
    return {
        block: BlockExamples(
            build_examples(graded, captured, block, prompts),
            ValueExamples.concatenate(
                [
                    build_examples(null.graded, null.captured, block, prompts),
                    build_intervened(trials, null.captured, basis, block, prompts),
                ]
            ),
        )
        for block in captured.blocks
    }


def _value_report(
    head: ValueHead, train: ValueExamples, validation: ValueExamples
) -> dict[str, Any]:
    """Calibration on held-out prompts, over all and per control point, beside the baselines."""
    predicted, _ = head.p_correct(validation.states, validation.points)
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
