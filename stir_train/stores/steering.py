"""The control basis, the value heads and the frozen choice of a run, for the right model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stir_train.artifacts.atomic import json_sha256
from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import load_tensors, save_tensors
from stir_train.config.stages import ControlPointConfig, UtilityConfig
from stir_train.config.steering import SteeringConfig
from stir_train.errors import ArtifactError
from stir_train.models.identity import ModelIdentity
from stir_train.models.value_head import ValueHead
from stir_train.stores.directions import DIRECTIONS_FILE, load_directions
from stir_train.stores.steering_files import BASIS_FILE, SteeringFiles
from stir_train.types.directions import DirectionSet
from stir_train.types.steering import ControlBasis


def head_file(block: int) -> str:
    """Name of a block's value head."""
    return f"head-block-{block}.safetensors"


class SteeringStore:
    """What a finished run offers to steer with; every reader checks the model."""

    def __init__(self, files: SteeringFiles, identity: ModelIdentity) -> None:
        self._files = files
        self.identity = identity

    def control_points(self) -> ControlPointConfig:
        """Where the run's rollouts had their control points."""
        return self._files.control_points()

    def basis(self) -> ControlBasis:
        """The control basis, as validation left it."""
        tensors, metadata = load_tensors(self._files.file(BASIS_FILE))
        self._require_same_model(metadata)
        return ControlBasis(**tensors)

    def head(self, block: int) -> ValueHead:
        """A block's value head, frozen."""
        head, metadata = load_head(self._files.file(head_file(block)))
        self._require_same_model(metadata)
        return head

    def directions(self) -> DirectionSet:
        """The reward-gradient directions, unit vectors on the CPU."""
        return load_directions(self._files.file(DIRECTIONS_FILE), self.identity)

    def choice(self) -> SteeringConfig:
        """The settings that tuning froze, their depths always given."""
        return self._files.choice()

    def utility(self) -> UtilityConfig:
        """What an answer was worth when the run's basis was validated."""
        return self._files.utility()

    def _require_same_model(self, metadata: Mapping[str, str]) -> None:
        expected = self.identity.fingerprint()
        if metadata["model_fingerprint"] != expected:
            raise ArtifactError(
                f"{self._files.path} was made for model {metadata['model']!r} "
                f"({metadata['model_fingerprint'][:12]}...), not for {self.identity.name!r} "
                f"({expected[:12]}...): other weights, tokenizer or width"
            )


def model_metadata(identity: ModelIdentity) -> dict[str, str]:
    """What an artifact says of the model it is for."""
    return {
        "model": identity.name,
        "model_fingerprint": identity.fingerprint(),
        "block_convention": identity.block_convention,
        "identity": json_sha256(identity.as_dict()),
    }


def save_basis(stage: StageDir, basis: ControlBasis, identity: ModelIdentity) -> None:
    """Write a stage's control basis."""
    save_tensors(stage, BASIS_FILE, vars(basis), model_metadata(identity))


def load_basis(stage: StageDir) -> tuple[ControlBasis, dict[str, str]]:
    """A finished stage's control basis, and what the file says of its model."""
    tensors, metadata = load_tensors(stage.file(BASIS_FILE))
    return ControlBasis(**tensors), metadata


def save_head(stage: StageDir, name: str, head: ValueHead, identity: ModelIdentity) -> None:
    """Write a value head as one of a stage's files."""
    save_tensors(stage, name, head.state_dict(), model_metadata(identity))


def load_head(path: Path) -> tuple[ValueHead, dict[str, str]]:
    """A value head from its file, frozen, and what the file says of its model."""
    tensors, metadata = load_tensors(path)
    num_members, width, hidden_width = tensors["weight_impulse"].shape
    head = ValueHead(
        reads=tensors["reads"].tolist(),
        width=width,
        hidden_width=hidden_width,
        num_members=num_members,
        max_points=tensors["point_bias"].shape[1],
        max_new_tokens=int(tensors["max_new_tokens"]),
    )
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(requires_grad=False), metadata
