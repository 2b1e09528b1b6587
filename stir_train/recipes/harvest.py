"""The stages that learn from rollouts: rollout, harvest, basis."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from stir_train.artifacts.atomic import json_sha256
from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import load_tensors, save_tensors
from stir_train.basis.diagnostics import diagnose, points_yield, warnings_of
from stir_train.basis.select import BlockSelection, select_basis
from stir_train.basis.shards import CandidateShard, is_held
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.distributed.claims import Note
from stir_train.distributed.world import World
from stir_train.harvest.contrast import contrast_rollouts
from stir_train.monitoring.console import caution, progress
from stir_train.recipes.context import RunContext
from stir_train.recipes.elastic import make_missing
from stir_train.recipes.rollouts import (
    GenerationJob,
    generate_jobs,
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
CANDIDATES = "candidates-"
DIAGNOSED_CONTRASTS = 20_000
"""Contrasts that the diagnostics look at: enough for every figure, and few enough for one process."""


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
        generate_jobs(context, stage, [job], advance)
    if not context.is_worker:
        context.world.on_main("rollouts made", lambda: _finish_rollouts(context, stage, job))


def _finish_rollouts(context: RunContext, stage: StageDir, job: GenerationJob) -> None:
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
    stage = context.begin(HARVEST, settings, upstream=(ROLLOUTS,), decodes=False)
    if stage is None:
        return
    count = num_chunks(context, rollout_job(context))
    files = {f"{chunk:05d}": candidates_file(chunk) for chunk in range(count)}

    def make(key: str) -> dict[str, int]:
        chunk = int(key)
        rollouts = context.stage(ROLLOUTS)
        found = contrast_rollouts(
            load_rollouts(rollouts, "", chunk),
            load_states(rollouts, "", chunk),
            max_points=config.control_points.max_points,
            num_positive=config.harvest.num_positive,
            num_negative=config.harvest.num_negative,
            keep_truncated=config.harvest.keep_truncated,
            min_saving=config.harvest.min_saving,
        )
        _save_candidates(stage, files[key], found)
        return {
            "num_contrasts": len(found),
            "num_saving_tokens": int(found.saves_tokens.sum()),
            "num_problems": len(set(found.prompt_ids)),
        }

    def hear(key: str, note: Note) -> None:
        if note:
            context.metrics.log(HARVEST, note, step=int(key))

    make_missing(context, stage, files, make, hear)
    context.world.on_main(
        "harvest made", lambda: _finish_harvest(context, stage, list(files.values()))
    )


def _finish_harvest(context: RunContext, stage: StageDir, files: list[str]) -> None:
    columns = [load_small_columns(stage.path / name) for name in files]
    prompt_ids = {prompt for prompts, _ in columns for prompt in prompts}
    points = {point for _, shard in columns for point in shard.points.tolist()}
    num_contrasts = sum(len(prompts) for prompts, _ in columns)
    num_saving = sum(int(shard.saves_tokens.sum()) for _, shard in columns)
    context.report_done(
        stage,
        {
            "num_contrasts": num_contrasts,
            "num_prompts": len(prompt_ids),
            "num_saving_tokens": num_saving,
        },
        f"{num_contrasts} contrasts ({num_saving} short against long) from {len(prompt_ids)} "
        f"problems at {len(points)} control points",
    )


def no_effect(context: RunContext) -> str | None:
    """Why nothing can be steered, once the harvest is there and has nothing to contrast."""
    stage = context.stage(HARVEST)
    if not stage.is_complete or stage.summary()["num_contrasts"]:
        return None
    found = context.stage(ROLLOUTS).summary()
    return (
        f"no effect: of {found['num_rollouts']} rollouts {found['correct_rate']:.1%} are correct "
        f"({found['pass_at_n']:.1%} of the problems are solved in some sample), and no problem has "
        "samples that differ in outcome or in length at a control point. There is nothing to "
        "contrast, so nothing to steer with. Problems that the model solves sometimes, a higher "
        "rollout.temperature or more rollout.num_samples would change that"
    )


def run_basis(context: RunContext) -> None:
    """Select the control basis and diagnose the contrasts."""
    config = context.config
    stage = context.begin(
        BASIS,
        {"basis": config.basis, "seed": config.seed},
        upstream=(HARVEST,),
        decodes=False,
    )
    if stage is None:
        return
    harvest = context.stage(HARVEST)
    shards = load_shards(harvest, context.world)
    selections = select_basis(shards, config.basis, seed=config.seed, world=context.world)
    context.world.on_main("basis made", lambda: _finish_basis(context, stage, selections))


def _finish_basis(context: RunContext, stage: StageDir, selections: list[BlockSelection]) -> None:
    candidates = load_candidates(context, at_most=DIAGNOSED_CONTRASTS)
    basis = ControlBasis.concatenate([selection.basis for selection in selections])
    save_tensors(stage, BASIS_FILE, vars(basis), model_metadata(context))
    diagnostics = diagnose(candidates)
    warnings = warnings_of(candidates, diagnostics)
    coverage = points_yield(candidates, basis)
    report: dict[str, Any] = {
        "blocks": [dataclasses.asdict(d) for d in diagnostics],
        "warnings": warnings,
        "points": coverage,
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
    _log_basis(context, selections, coverage)
    for warning in warnings:
        context.console.print(caution(f"basis: {warning}"))
    context.report_done(
        stage,
        {"num_entries": len(basis), "num_corrections": int((~basis.is_anchor).sum())},
        f"{len(basis)} entries over blocks {', '.join(map(str, candidates.blocks))}",
    )


def _log_basis(
    context: RunContext,
    selections: list[BlockSelection],
    coverage: list[tuple[int, int, float]],
) -> None:
    """The curve of the log-determinant, the spectrum of the keys, and what each point got."""
    for found in selections:
        name = _selection_name(found)
        for pick, logdet in enumerate(found.selection.logdet, start=1):
            context.metrics.log(BASIS, {f"logdet/{name}": logdet}, step=pick)
        for place, value in enumerate(torch.linalg.svdvals(found.basis.keys).tolist(), start=1):
            context.metrics.log(BASIS, {f"spectrum/{name}": value}, step=place)
    for point, num_found, num_kept in coverage:
        context.metrics.log(
            BASIS, {"coverage/contrasts": num_found, "coverage/kept": num_kept}, step=point
        )


def _selection_name(selection: BlockSelection) -> str:
    return f"{selection.block}{', short against long' if selection.saves_tokens else ''}"


def load_basis(context: RunContext) -> ControlBasis:
    """The selected basis, before validation."""
    tensors, _ = load_tensors(context.stage(BASIS).file(BASIS_FILE))
    return ControlBasis(**tensors)


def candidates_file(chunk: int) -> str:
    """Name of the contrasts of one chunk of rollouts."""
    return f"candidates-{chunk:05d}.safetensors"


def load_candidates(context: RunContext, *, at_most: int) -> Candidates:
    """The contrasts of a finished harvest, file by file until there are enough."""
    parts: list[Candidates] = []
    for path in context.stage(HARVEST).files(CANDIDATES):
        parts.append(_read_candidates(path))
        if sum(map(len, parts)) >= at_most:
            break
    return Candidates.concatenate(parts)


def load_shards(stage: StageDir, world: World) -> list[CandidateShard]:
    """The contrasts of a finished harvest: states of this rank's share, small columns of all."""
    listed = sorted(
        name for name in stage.require_complete()["files"] if name.startswith(CANDIDATES)
    )
    return [
        CandidateShard.of(_read_candidates(stage.file(name)))
        if is_held(number, world)
        else load_small_columns(stage.path / name)[1]
        for number, name in enumerate(listed)
    ]


def load_small_columns(path: Path) -> tuple[tuple[str, ...], CandidateShard]:
    """A file's problems and small columns, its states left on disk."""
    tensors, metadata = load_tensors(path, only=("points", "quality", "saves_tokens"))
    shard = CandidateShard(
        tensors["points"],
        tensors["quality"],
        tensors["saves_tokens"],
        tuple(json.loads(metadata["blocks"])),
        int(metadata["width"]),
        None,
    )
    return tuple(json.loads(metadata["prompt_ids"])), shard


def _read_candidates(path: Path) -> Candidates:
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


def _save_candidates(stage: StageDir, name: str, candidates: Candidates) -> None:
    save_tensors(
        stage,
        name,
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
            "width": str(candidates.mean_right.shape[2]),
        },
    )


def model_metadata(context: RunContext) -> dict[str, str]:
    """What an artifact says of the model it is for."""
    identity = context.described.identity
    return {
        "model": identity.name,
        "model_fingerprint": identity.fingerprint(),
        "block_convention": identity.block_convention,
        "identity": json_sha256(identity.as_dict()),
    }
