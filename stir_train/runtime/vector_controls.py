"""What should not work where a chosen vector does: other vectors at the same places, of the same norms."""

from __future__ import annotations

from stir_train.config.stages import MAX_RANDOM_VECTORS
from stir_train.directions.controls import random_directions
from stir_train.runtime.context import RunContext
from stir_train.runtime.direction_steps import shuffled_vectors
from stir_train.types.directions import DirectionSet


def vector_controls(context: RunContext) -> dict[str, DirectionSet]:
    """Random directions, and the whole estimate, step by step, from rewards shuffled within problems."""
    directions, seed = context.steering.directions(), context.config.seed
    controls = {
        f"control-random-{number}": random_directions(
            directions, seed=MAX_RANDOM_VECTORS * seed + number
        )
        for number in range(context.config.evaluate.num_random_vectors)
    }
    return controls | {"control-shuffled-rewards": shuffled_vectors(context)}
