"""Build the controllers of a run from its basis, value heads and settings."""

from __future__ import annotations

from pathlib import Path

import torch

from stir_train.config.stages import ControlPointConfig, UtilityConfig
from stir_train.config.steering import SteeringConfig
from stir_train.generation.controller import Steering
from stir_train.models.blocks import resolve_depth
from stir_train.models.identity import ModelIdentity
from stir_train.models.value_head import ValueHead
from stir_train.steering.interface import (
    ControllerInputs,
    make_controller,
)
from stir_train.stores.steering import SteeringStore
from stir_train.stores.steering_files import run_files
from stir_train.types.directions import DirectionSet
from stir_train.types.steering import ControlBasis


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

    def directions(self) -> DirectionSet:
        """The reward-gradient directions of blocks and places, verified."""
        return self._store.directions()

    def choice(self) -> SteeringConfig:
        """The settings that tuning froze, their depth always given."""
        return self._store.choice()

    def utility(self) -> UtilityConfig:
        """What an answer was worth when the run's basis was validated."""
        return self._store.utility()

    def controller(
        self,
        settings: SteeringConfig,
        *,
        device: torch.device,
        basis: ControlBasis | None = None,
        directions: DirectionSet | None = None,
    ) -> Steering:
        """The controller that settings describe, over the run's basis and directions or others.

        Raises:
            ArtifactError: If the settings name no depth, or the run lacks what their mode needs.
            ConfigError: If they name a controller that cannot be made.
        """
        return make_controller(
            ControllerInputs(
                settings=settings,
                block_at=lambda depth: resolve_depth(depth, self._store.identity.num_blocks),
                read_basis=self.basis if basis is None else lambda: basis,
                head=self.head,
                directions=self.directions if directions is None else lambda: directions,
                read_utility=self.utility,
                device=device,
            )
        )


def open_run_artifacts(path: Path, identity: ModelIdentity) -> SteeringArtifacts:
    """The steering artifacts of a run directory.

    Raises:
        ArtifactError: If there is no such directory.
    """
    return SteeringArtifacts(SteeringStore(run_files(path), identity))
