"""One file that a fit goes on from, in safetensors, whatever the number of ranks was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stir_train.artifacts.atomic import atomic_path
from stir_train.artifacts.tensors import METADATA_KEY, load_tensors, write_safetensors
from stir_train.errors import ArtifactError

FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit was.

    Attributes:
        step: Finished optimizer steps.
        record: JSON-ready history: losses, validations.
        state: The engine's state.
        best: Best validated parameters, if validation is on and has improved once.
    """

    step: int
    record: Mapping[str, Any]
    state: Mapping[str, Tensor]
    best: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class CheckpointFile:
    """Where a fit's checkpoint lives, how often it is written, and what it belongs to.

    Attributes:
        directory: Holds the one file.
        every_steps: Steps between checkpoints.
        belongs_to: Fingerprint of what is being fitted; another's checkpoint is refused.
    """

    directory: Path
    every_steps: int
    belongs_to: str

    @property
    def path(self) -> Path:
        """The one file, replaced by every checkpoint and gone once the stage is done."""
        return self.directory / FILE

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint in one rename."""
        tensors = {f"state/{name}": t.contiguous() for name, t in checkpoint.state.items()}
        for name, tensor in (checkpoint.best or {}).items():
            tensors[f"best/{name}"] = tensor.contiguous()
        record = {
            "step": checkpoint.step,
            "record": checkpoint.record,
            "belongs_to": self.belongs_to,
        }
        with atomic_path(self.path) as path:
            write_safetensors(tensors, path, {METADATA_KEY: json.dumps(record)})

    def load(self) -> Checkpoint | None:
        """The checkpoint, if there is one.

        Raises:
            ArtifactError: If it belongs to another fit.
        """
        if not self.path.is_file():
            return None
        tensors, metadata = load_tensors(self.path)
        if str(metadata["belongs_to"]) != self.belongs_to:
            raise ArtifactError(
                f"{self.path} is a checkpoint of a fit with other settings or samples; "
                "remake the stage with --redo"
            )
        best = _under("best/", tensors)
        record: Any = metadata["record"]
        return Checkpoint(int(metadata["step"]), record, _under("state/", tensors), best or None)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
