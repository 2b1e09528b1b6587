"""Build the controllers of a run from its basis and value heads."""

from __future__ import annotations

from pathlib import Path

import torch

from stir_train.config.stages import VALUE_MODES, ControlPointConfig, SteeringConfig
from stir_train.errors import ArtifactError
from stir_train.models.blocks import resolve_depth
from stir_train.models.load import ModelIdentity
from stir_train.models.value_head import ValueHead
from stir_train.steering.controller import BasisController
from stir_train.steering.static import StaticController
from stir_train.stores.steering import SteeringStore, open_steering
from stir_train.types.steering import ControlBasis

SteeringController = BasisController | StaticController


class SteeringArtifacts:
    """What a finished run offers to steer with, and the controllers over it."""

    def __init__(self, store: SteeringStore) -> None:
        self._store = store

    def control_points(self) -> ControlPointConfig:
        """Where the run's rollouts had their control points."""
        return self._store.control_points()

    def basis(self) -> ControlBasis:
        """The control basis, as validation left it."""
        return self._store.basis()

    def head(self, block: int) -> ValueHead:
        """A block's value head, frozen."""
        return self._store.head(block)

    def choice(self) -> SteeringConfig:
        """The settings that tuning froze, their depth always given."""
        return self._store.choice()

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
        """
        if settings.depth is None:
            raise ArtifactError("steering.depth is not set; tuning sets it, or name one")
        block = resolve_depth(settings.depth, self._store.identity.num_blocks)
        head = self.head(block) if settings.mode in VALUE_MODES else None
        used = self.basis() if basis is None else basis
        if settings.mode == "static":
            return StaticController(used, settings, block=block, device=device)
        return BasisController(used, settings, block=block, head=head, device=device)


def open_run_artifacts(path: Path, identity: ModelIdentity) -> SteeringArtifacts:
    """The steering artifacts of a run directory.

    Raises:
        ArtifactError: If there is no such directory.
    """
    return SteeringArtifacts(open_steering(path, identity))
