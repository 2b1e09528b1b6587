"""Reward-gradient directions added whatever the state: what mode ``vector`` steers by."""

from __future__ import annotations

from stir_train.config.places import estimated_at
from stir_train.config.steering import VectorSteering
from stir_train.errors import ConfigError
from stir_train.generation.fixed import FixedVector
from stir_train.steering.interface import ControllerInputs


def make_vector_controllers(inputs: ControllerInputs) -> tuple[FixedVector, ...]:
    """One controller an action, over the run's directions; a strength is the norm of what is added.

    Raises:
        ConfigError: If the run has no direction for a block and place.
    """
    settings = inputs.settings
    assert isinstance(settings, VectorSteering)
    directions = inputs.directions()
    have = list(zip(directions.blocks.tolist(), directions.places, strict=True))
    made = []
    for action in settings.actions:
        block, place = inputs.block_at(action.depth), estimated_at(action.place)
        if (block, place) not in have:
            raise ConfigError(
                f"steering.actions: no direction for {action.place} at depth {action.depth:g} (block "
                f"{block}); the run has {', '.join(f'{p} at block {b}' for b, p in have)}"
            )
        vector = directions.vector(block, place).to(inputs.device)
        made.append(FixedVector(action.place, block, vector, action.strength))
    return tuple(made)
