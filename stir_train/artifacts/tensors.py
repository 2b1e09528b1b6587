"""Tensors in safetensors files, with their metadata; non-finite values are refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stir_train.artifacts.run_dir import StageDir
from stir_train.errors import ArtifactError

METADATA_KEY = "stir_train"


def save_tensors(
    stage: StageDir, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and string metadata as one of a stage's files.

    Raises:
        ArtifactError: If a tensor holds NaN or infinity; the message names it.
    """
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ArtifactError(
                f"{stage.path / name}: {bad} of {tensor.numel()} values of {key!r} are not finite; "
                "the model or its dtype overflows (try model.dtype=float32)"
            )
    # One metadata key: safetensors writes several in an order that changes from run to run.
    packed = {METADATA_KEY: json.dumps(dict(metadata), sort_keys=True)}
    with stage.writing(name) as path:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=packed)


def load_tensors(
    path: Path, *, only: Collection[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors, all or ``only`` some of them, and metadata.

    Raises:
        ArtifactError: If the file is truncated or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            wanted = file.keys() if only is None else only
            tensors = {key: file.get_tensor(key) for key in wanted}
            packed = (file.metadata() or {}).get(METADATA_KEY, "{}")
            return tensors, dict(json.loads(packed))
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read as safetensors: {error}") from error
