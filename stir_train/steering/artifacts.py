"""Read a control basis, value heads and a frozen choice from a run's stages, for the right model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from stir_train.artifacts.run_dir import RunDir, StageDir
from stir_train.artifacts.tensors import load_tensors
from stir_train.config.stages import ControlPointConfig, UtilityConfig
from stir_train.config.steering import SteeringConfig, parse_steering
from stir_train.errors import ArtifactError
from stir_train.models.blocks import resolve_depth
from stir_train.models.identity import ModelIdentity
from stir_train.models.value_head import ValueHead
from stir_train.steering.interface import (
    ControllerInputs,
    SteeringController,
    make_controller,
)
from stir_train.types.steering import ControlBasis

BASIS_FILE, REPORT_FILE = "basis.safetensors", "report.json"


class SteeringArtifacts:
    """What a finished run offers to steer with; every reader checks the model."""

    def __init__(self, run_dir: RunDir, identity: ModelIdentity) -> None:
        self._run_dir = run_dir
        self._identity = identity

    def control_points(self) -> ControlPointConfig:
        """Where the run's rollouts had their control points."""
        settings = self._stage("rollout").settings()
        return ControlPointConfig.model_validate(settings["control_points"])

    def basis(self) -> ControlBasis:
        """The control basis, as validation left it."""
        tensors, metadata = load_tensors(self._stage("validate").file(BASIS_FILE))
        self._require_same_model(metadata)
        return ControlBasis(**tensors)

    def head(self, block: int) -> ValueHead:
        """A block's value head, frozen."""
        head, metadata = load_head(self._stage("value").file(head_file(block)))
        self._require_same_model(metadata)
        return head

    def choice(self) -> SteeringConfig:
        """The settings that tuning froze, their depth always given."""
        report = self._stage("tune").file(REPORT_FILE).read_text(encoding="utf-8")
        return parse_steering(json.loads(report)["chosen"])

    def utility(self) -> UtilityConfig:
        """What an answer was worth when the run's basis was validated."""
        return UtilityConfig.model_validate(self._stage("validate").settings()["utility"])

    def controller(
        self,
        settings: SteeringConfig,
        *,
        device: torch.device,
        basis: ControlBasis | None = None,
    ) -> SteeringController:
        """The controller that settings describe, over the run's basis or another.

        Raises:
            ArtifactError: If the settings name no depth.
            ConfigError: If they name a controller that cannot be made.
        """
        if settings.depth is None:
            raise ArtifactError("steering.depth is not set; tuning sets it, or name one")
        block = resolve_depth(settings.depth, self._identity.num_blocks)
        return make_controller(
            ControllerInputs(
                settings=settings,
                basis=self.basis() if basis is None else basis,
                block=block,
                head=self.head,
                utility=self.utility(),
                device=device,
            )
        )

    def _stage(self, name: str) -> StageDir:
        return self._run_dir.stage(name)

    def _require_same_model(self, metadata: dict[str, str]) -> None:
        expected = self._identity.fingerprint()
        if metadata["model_fingerprint"] != expected:
            raise ArtifactError(
                f"{self._run_dir.path} was made for model {metadata['model']!r} "
                f"({metadata['model_fingerprint'][:12]}...), not for {self._identity.name!r} "
                f"({expected[:12]}...): other weights, tokenizer or width"
            )


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


def head_file(block: int) -> str:
    """Name of a block's value head."""
    return f"head-block-{block}.safetensors"


def open_run_artifacts(path: Path, identity: ModelIdentity) -> SteeringArtifacts:
    """The steering artifacts of a run directory.

    Raises:
        ArtifactError: If there is no such directory.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path} is no run directory")
    return SteeringArtifacts(RunDir(path), identity)
