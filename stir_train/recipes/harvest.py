"""Contrast right and wrong rollouts at control points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stir_train.artifacts.atomic import json_sha256
from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import load_tensors, save_tensors
from stir_train.basis.shards import CandidateShard, is_held
from stir_train.distributed.leases import Note
from stir_train.distributed.world import World
from stir_train.harvest.contrast import contrast_rollouts
from stir_train.recipes.rollout import rollout_job
from stir_train.runtime.chunk_scheduler import make_missing
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import (
    load_rollouts,
    load_states,
    num_chunks,
)
from stir_train.steering.artifacts import BASIS_FILE, REPORT_FILE
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import Candidates, ControlBasis
from stir_train.types.trajectory import CapturedStates

CANDIDATES = "candidates-"


def run(context: RunContext, stage: StageDir) -> Finish:
    """Contrast right and wrong rollouts."""
    config = context.config
    count = num_chunks(context, rollout_job(context))
    files = {f"{chunk:05d}": candidates_file(chunk) for chunk in range(count)}

    def make(key: str) -> dict[str, int]:
        chunk = int(key)
        rollouts = context.stage("rollout")
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

    def on_finished(key: str, note: Note) -> None:
        if note:
            context.metrics.log("harvest", note, step=int(key))

    make_missing(context, stage, files, make, on_finished)
    return lambda: _finish(context, stage, list(files.values()))


def _finish(context: RunContext, stage: StageDir, files: list[str]) -> Outcome:
    columns = [load_small_columns(stage.path / name) for name in files]
    prompt_ids = {prompt for prompts, _ in columns for prompt in prompts}
    points = {point for _, shard in columns for point in shard.points.tolist()}
    num_contrasts = sum(len(prompts) for prompts, _ in columns)
    num_saving = sum(int(shard.saves_tokens.sum()) for _, shard in columns)
    return Outcome(
        {
            "num_contrasts": num_contrasts,
            "num_prompts": len(prompt_ids),
            "num_saving_tokens": num_saving,
        },
        f"{num_contrasts} contrasts ({num_saving} short against long) from {len(prompt_ids)} "
        f"problems at {len(points)} control points",
        ends_run=None if num_contrasts else _no_effect(context),
    )


def _no_effect(context: RunContext) -> str:
    """What to change where nothing can be contrasted."""
    found = context.stage("rollout").summary()
    return (
        f"no effect: of {found['num_rollouts']} rollouts {found['correct_rate']:.1%} are correct "
        f"({found['pass_at_n']:.1%} of the problems are solved in some sample), and no problem has "
        "samples that differ in outcome or in length at a control point. There is nothing to "
        "contrast, so nothing to steer with. Problems that the model solves sometimes, a higher "
        "rollout.temperature or more rollout.num_samples would change that"
    )


def load_basis(context: RunContext) -> ControlBasis:
    """The selected basis, before validation."""
    tensors, _ = load_tensors(context.stage("basis").file(BASIS_FILE))
    return ControlBasis(**tensors)


def candidates_file(chunk: int) -> str:
    """Name of the contrasts of one chunk of rollouts."""
    return f"candidates-{chunk:05d}.safetensors"


def load_candidates(context: RunContext, *, at_most: int) -> Candidates:
    """The contrasts of a finished harvest, file by file until there are enough."""
    parts: list[Candidates] = []
    for path in context.stage("harvest").files(CANDIDATES):
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
    stage = context.stage("rollout")
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
    identity = context.resources.described.identity
    return {
        "model": identity.name,
        "model_fingerprint": identity.fingerprint(),
        "block_convention": identity.block_convention,
        "identity": json_sha256(identity.as_dict()),
    }
