"""Directions and rollout gradients as files of a stage, tied to the model they were made for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import load_tensors, save_tensors
from stir_train.errors import ArtifactError
from stir_train.models.identity import ModelIdentity
from stir_train.types.directions import (
    PLACES,
    DirectionSet,
    PointGradients,
    RolloutGradients,
)
from stir_train.types.trajectory import StateLabel

FINGERPRINT = "model_fingerprint"
DIRECTIONS_FILE = "directions.safetensors"


def gradients_file(chunk: int) -> str:
    """Name of a chunk's gradients."""
    return f"gradients-{chunk:05d}.safetensors"


def points_file(chunk: int) -> str:
    """Name of a chunk's states and gradients at single points."""
    return f"points-{chunk:05d}.safetensors"


def cost_file(chunk: int) -> str:
    """Name of what a chunk's gradients cost."""
    return f"cost-{chunk:05d}.json"


def save_directions(
    stage: StageDir, name: str, directions: DirectionSet, identity: ModelIdentity
) -> None:
    """Write directions as one of a stage's files."""
    save_tensors(
        stage,
        name,
        {
            "directions": directions.directions,
            "blocks": directions.blocks,
            "gains": directions.gains,
            "split_half_cosines": directions.split_half_cosines,
            "p_values": directions.p_values,
        },
        _model(identity) | {"places": json.dumps(directions.places)},
    )


def load_directions(path: Path, identity: ModelIdentity) -> DirectionSet:
    """Read directions for a model.

    Raises:
        ArtifactError: If the file cannot be read, or was made for another model.
    """
    tensors, metadata = load_tensors(path)
    _require_same_model(path, metadata, identity)
    return DirectionSet(places=tuple(json.loads(metadata["places"])), **tensors)


def save_gradients(
    stage: StageDir, name: str, gradients: RolloutGradients, identity: ModelIdentity
) -> None:
    """Write a chunk's gradients, but those of single points, as one of a stage's files."""
    tensors = {
        "samples": torch.tensor(gradients.samples, dtype=torch.long),
        "logprobs": gradients.logprobs,
        "sums": gradients.sums,
        "state_norms": gradients.state_norms,
        "state_means": gradients.state_means,
    }
    metadata = _model(identity) | {
        "prompt_ids": json.dumps(gradients.prompt_ids),
        "blocks": json.dumps(gradients.blocks),
        "places": json.dumps(PLACES),
    }
    save_tensors(stage, name, tensors, metadata)


def load_gradients(path: Path, identity: ModelIdentity) -> RolloutGradients:
    """Read a chunk's gradients.

    Raises:
        ArtifactError: If the file cannot be read, or was made for another model.
    """
    tensors, metadata = load_tensors(path)
    _require_same_model(path, metadata, identity)
    return RolloutGradients(
        prompt_ids=tuple(json.loads(metadata["prompt_ids"])),
        samples=tuple(tensors["samples"].tolist()),
        blocks=tuple(json.loads(metadata["blocks"])),
        logprobs=tensors["logprobs"],
        sums=tensors["sums"],
        state_norms=tensors["state_norms"],
        state_means=tensors["state_means"],
    )


def save_points(
    stage: StageDir,
    name: str,
    points: PointGradients,
    blocks: Sequence[int],
    identity: ModelIdentity,
) -> None:
    """Write a chunk's states and gradients at single points: larger than its sums, and read by few."""
    labels = [(one.sample, one.point, one.token_index, one.token_id) for one in points.labels]
    save_tensors(
        stage,
        name,
        {
            "states": points.states,
            "at_point": points.at_point,
            "over_segment": points.over_segment,
            "labels": torch.tensor(labels, dtype=torch.long).reshape(-1, 4),
        },
        _model(identity)
        | {
            "prompt_ids": json.dumps([one.prompt_id for one in points.labels]),
            "blocks": json.dumps(tuple(blocks)),
        },
    )


def load_points(path: Path, identity: ModelIdentity) -> tuple[PointGradients, tuple[int, ...]]:
    """Read a chunk's states and gradients at single points, and which blocks they are of.

    Raises:
        ArtifactError: If the file cannot be read, or was made for another model.
    """
    tensors, metadata = load_tensors(path)
    _require_same_model(path, metadata, identity)
    rows = zip(json.loads(metadata["prompt_ids"]), tensors["labels"].tolist(), strict=True)
    points = PointGradients(
        labels=tuple(StateLabel(prompt_id, *row) for prompt_id, row in rows),
        states=tensors["states"],
        at_point=tensors["at_point"],
        over_segment=tensors["over_segment"],
    )
    return points, tuple(json.loads(metadata["blocks"]))


def _model(identity: ModelIdentity) -> dict[str, str]:
    return {
        "model": identity.name,
        FINGERPRINT: identity.fingerprint(),
        "block_convention": identity.block_convention,
    }


def _require_same_model(path: Path, metadata: dict[str, str], identity: ModelIdentity) -> None:
    made_for, expected = metadata.get(FINGERPRINT, ""), identity.fingerprint()
    if made_for != expected:
        raise ArtifactError(
            f"{path} was made for model {metadata.get('model')!r} ({made_for[:12]}...), not for "
            f"{identity.name!r} ({expected[:12]}...): other weights, tokenizer or width"
        )
