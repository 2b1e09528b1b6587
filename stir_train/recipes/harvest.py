"""The stages that learn from rollouts: rollout, harvest, basis."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from stir_train.artifacts.atomic import json_sha256
from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import load_tensors, save_tensors
from stir_train.basis.diagnostics import diagnose, points_yield, warnings_of
from stir_train.basis.select import BlockSelection, select_basis
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.errors import StageError
from stir_train.harvest.contrast import contrast_rollouts
from stir_train.monitoring.console import progress
from stir_train.recipes.context import RunContext
from stir_train.recipes.rollouts import (
    GenerationJob,
    generate_job,
    load_rollouts,
    load_states,
    num_chunks,
    sampling_params,
)
from stir_train.steering.artifacts import BASIS_FILE, REPORT_FILE
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import Candidates, ControlBasis
from stir_train.types.trajectory import CapturedStates

ROLLOUTS, HARVEST = STAGE_DIRECTORIES["rollout"], STAGE_DIRECTORIES["harvest"]
BASIS = STAGE_DIRECTORIES["basis"]
CANDIDATES_FILE = "candidates.safetensors"


def rollout_job(context: RunContext) -> GenerationJob:
    """Sampled rollouts of the harvest split, states captured at every harvested block."""
    return GenerationJob(
        prompts=context.splits["harvest"],
        num_samples=context.config.rollout.num_samples,
        sampling=sampling_params(context, greedy=False),
        capture_blocks=context.captured_blocks,
    )


def run_rollout(context: RunContext) -> None:
    """Sample, grade and capture."""
    config = context.config
    settings = {
        "seed": config.seed,
        "num_threads": config.num_threads,
        "task": config.task,
        "control_points": config.control_points,
        "generation": config.generation,
        "rollout": config.rollout,
        "blocks": context.captured_blocks,
    }
    stage = context.begin(ROLLOUTS, settings, splits=("harvest",))
    if stage is None:
        return
    job = rollout_job(context)
    total = len(job.prompts) * job.num_samples
    with progress(context.console, "rollouts", total, "rollouts") as advance:
        generate_job(context, stage, job, advance)
    graded = [
        g for chunk in range(num_chunks(context, job)) for g in load_rollouts(stage, "", chunk)
    ]
    by_prompt: dict[str, list[bool]] = {}
    for item in graded:
        by_prompt.setdefault(item.rollout.prompt_id, []).append(item.grade.correct)
    summary = {
        "num_rollouts": len(graded),
        "correct_rate": sum(g.grade.correct for g in graded) / len(graded),
        "pass_at_n": sum(map(any, by_prompt.values())) / len(by_prompt),
        "tokens_mean": sum(len(g.rollout.token_ids) for g in graded) / len(graded),
        "truncated_rate": sum(g.rollout.truncated for g in graded) / len(graded),
    }
    context.report_done(
        stage,
        summary,
        f"{len(graded)} rollouts, {summary['correct_rate']:.1%} correct, "
        f"pass@{job.num_samples} {summary['pass_at_n']:.1%}, {summary['tokens_mean']:.1f} tokens",
    )


def run_harvest(context: RunContext) -> None:
    """Contrast right and wrong rollouts."""
    config = context.config
    settings = {"harvest": config.harvest, "max_points": config.control_points.max_points}
    stage = context.begin(HARVEST, settings, upstream=(ROLLOUTS,))
    if stage is None:
        return
    parts = []
    for graded, captured in rollout_chunks(context):
        parts.append(
            contrast_rollouts(
                graded,
                captured,
                max_points=config.control_points.max_points,
                num_positive=config.harvest.num_positive,
                num_negative=config.harvest.num_negative,
                keep_truncated=config.harvest.keep_truncated,
                min_saving=config.harvest.min_saving,
            )
        )
    candidates = Candidates.concatenate(parts)
    if not len(candidates):
        raise StageError(
            "the harvest found no control point with both right and wrong rollouts; see the correct "
            "rate above. Use harder or easier problems, more rollout.num_samples, or a higher "
            "rollout.temperature"
        )
    _save_candidates(stage, candidates)
    context.report_done(
        stage,
        {
            "num_contrasts": len(candidates),
            "num_prompts": len(set(candidates.prompt_ids)),
            "num_saving_tokens": int(candidates.saves_tokens.sum()),
        },
        f"{len(candidates)} contrasts ({int(candidates.saves_tokens.sum())} short against long) from {len(set(candidates.prompt_ids))} problems at "
        f"{len(candidates.points.unique())} control points",
    )


def run_basis(context: RunContext) -> None:
    """Select the control basis and diagnose the contrasts."""
    config = context.config
    stage = context.begin(BASIS, {"basis": config.basis, "seed": config.seed}, upstream=(HARVEST,))
    if stage is None:
        return
    candidates = load_candidates(context)
    selections = select_basis(candidates, config.basis, seed=config.seed)
    basis = ControlBasis.concatenate([selection.basis for selection in selections])
    save_tensors(stage, BASIS_FILE, vars(basis), model_metadata(context))
    diagnostics = diagnose(candidates)
    warnings = warnings_of(candidates, diagnostics)
    report: dict[str, Any] = {
        "blocks": [dataclasses.asdict(d) for d in diagnostics],
        "warnings": warnings,
        "points": points_yield(candidates, basis),
        "quality": candidates.quality.tolist(),
        "norms": {
            str(block): (candidates.mean_right - candidates.mean_wrong)[:, layer]
            .norm(dim=-1)
            .tolist()
            for layer, block in enumerate(candidates.blocks)
        },
        "logdet": {_selection_name(s): s.selection.logdet for s in selections},
        "objective": {_selection_name(s): s.selection.objective for s in selections},
    }
    save_report(stage, report)
    for warning in warnings:
        context.console.print(f"[yellow]! basis: {warning}[/]")
    context.report_done(
        stage,
        {"num_entries": len(basis), "num_corrections": int((~basis.is_anchor).sum())},
        f"{len(basis)} entries over blocks {', '.join(map(str, candidates.blocks))}",
    )


def _selection_name(selection: BlockSelection) -> str:
    return f"{selection.block}{', short against long' if selection.saves_tokens else ''}"


def load_basis(context: RunContext) -> ControlBasis:
    """The selected basis, before validation."""
    tensors, _ = load_tensors(context.stage(BASIS).file(BASIS_FILE))
    return ControlBasis(**tensors)


def load_candidates(context: RunContext) -> Candidates:
    """The finished harvest."""
    path = context.stage(HARVEST).file(CANDIDATES_FILE)
    tensors, metadata = load_tensors(path)
    return Candidates(
        prompt_ids=tuple(json.loads(metadata["prompt_ids"])),
        points=tensors["points"],
        quality=tensors["quality"],
        mean_right=tensors["mean_right"],
        mean_wrong=tensors["mean_wrong"],
        saves_tokens=tensors["saves_tokens"],
        blocks=tuple(json.loads(metadata["blocks"])),
    )


def load_report(stage: StageDir) -> dict[str, Any]:
    """A finished stage's figures."""
    return dict(json.loads(stage.file(REPORT_FILE).read_text(encoding="utf-8")))


def save_report(stage: StageDir, report: dict[str, Any]) -> None:
    """Write a stage's figures as JSON."""
    with stage.writing(REPORT_FILE) as path:
        path.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def rollout_chunks(context: RunContext) -> list[tuple[list[GradedRollout], CapturedStates]]:
    """The sampled rollouts of the harvest split with their states, chunk by chunk."""
    stage = context.stage(ROLLOUTS)
    stage.require_complete()
    count = num_chunks(context, rollout_job(context))
    return [(load_rollouts(stage, "", i), load_states(stage, "", i)) for i in range(count)]


def _save_candidates(stage: StageDir, candidates: Candidates) -> None:
    save_tensors(
        stage,
        CANDIDATES_FILE,
        {
            "points": candidates.points,
            "quality": candidates.quality,
            "mean_right": candidates.mean_right,
            "mean_wrong": candidates.mean_wrong,
            "saves_tokens": candidates.saves_tokens,
        },
        {
            "prompt_ids": json.dumps(candidates.prompt_ids),
            "blocks": json.dumps(candidates.blocks),
        },
    )


def model_metadata(context: RunContext) -> dict[str, str]:
    """What an artifact says of the model it is for."""
    identity = context.loaded.identity
    return {
        "model": identity.name,
        "model_fingerprint": identity.fingerprint(),
        "block_convention": identity.block_convention,
        "identity": json_sha256(identity.as_dict()),
    }
