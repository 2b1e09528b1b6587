"""How a controller is made from a run: what it is given, and what gives it.

A mode's settings name what makes its controller by import path (`SteeringSettings.made_by`), the
user's own (``steering.mode: custom``) like those that are shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from pydantic import JsonValue

from stir_train.config.import_path import load_object
from stir_train.config.stages import UtilityConfig
from stir_train.config.steering import (
    CustomSteering,
    OneBlockSteering,
    ScaledSteering,
    SteeringConfig,
)
from stir_train.errors import ArtifactError, ConfigError
from stir_train.generation.controller import Controller, Steering
from stir_train.models.value_head import ValueHead
from stir_train.types.directions import DirectionSet
from stir_train.types.steering import ControlBasis


@dataclass(frozen=True)
class ControllerInputs:
    """What a run offers to make a controller from, read when it is asked for.

    Attributes:
        settings: The mode's settings.
        block_at: The block at a depth.
        read_basis: Reads the control basis.
        head: Reads the value head of a block, frozen, on the CPU.
        directions: Reads the reward-gradient directions, unit vectors on the CPU.
        read_utility: Reads what an answer is worth.
        device: Where the states will be.
    """

    settings: SteeringConfig
    block_at: Callable[[float], int]
    read_basis: Callable[[], ControlBasis]
    head: Callable[[int], ValueHead]
    directions: Callable[[], DirectionSet]
    read_utility: Callable[[], UtilityConfig]
    device: torch.device

    @property
    def block(self) -> int:
        """Where to steer: the block at the settings' depth.

        Raises:
            ArtifactError: If the settings name no depth.
        """
        depth = self.settings.depth if isinstance(self.settings, OneBlockSteering) else None
        if depth is None:
            raise ArtifactError("steering.depth is not set; tuning sets it, or name one")
        return self.block_at(depth)

    @cached_property
    def basis(self) -> ControlBasis:
        """The control basis as validated, of every harvested block, on the CPU."""
        return self.read_basis()

    @property
    def utility(self) -> UtilityConfig:
        """What an answer is worth."""
        return self.read_utility()

    @property
    def strength(self) -> float:
        """``steering.strength``, which tuning varies; 0 in mode ``none``."""
        return self.settings.strength if isinstance(self.settings, ScaledSteering) else 0.0

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """``steering.options`` of a controller of the user's own."""
        return self.settings.options if isinstance(self.settings, CustomSteering) else {}


def make_controller(inputs: ControllerInputs) -> Steering:
    """The controller of the settings' mode, or several that act together.

    Raises:
        ConfigError: If what the settings name cannot be imported, or makes no controller.
    """
    path = inputs.settings.controller_path
    factory = load_object(path, kind="steering.controller")
    if not callable(factory):
        raise ConfigError(
            f"steering.controller: {path} is of type {type(factory).__name__}; expected a class or function "
            "that takes ControllerInputs"
        )
    made = factory(inputs)
    if isinstance(made, tuple) and all(isinstance(one, Controller) for one in made):
        return made
    if isinstance(made, Controller):
        return made
    needed = ("place", "block", "reads", "decide")
    lacking = [name for name in needed if not hasattr(made, name)]
    raise ConfigError(
        f"steering.controller: {path} made a {type(made).__name__} without {', '.join(lacking)}; "
        "a controller has place, block, reads and decide"
    )
