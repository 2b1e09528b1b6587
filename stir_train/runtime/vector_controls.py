"""What should not work where a chosen vector does: other vectors at the same places, of the same norms."""

from __future__ import annotations

from stir_train.config.stages import MAX_RANDOM_VECTORS
from stir_train.config.steering import VectorSteering
from stir_train.directions.controls import mean_differences, random_directions
from stir_train.runtime.context import RunContext
from stir_train.runtime.direction_steps import shuffled_vectors, step_files, step_gradients
from stir_train.runtime.directions import advantages_of
from stir_train.types.directions import DirectionSet


def vector_controls(context: RunContext, chosen: VectorSteering) -> dict[str, DirectionSet]:
    """Other vectors to steer by in place of the chosen ones.

    Random directions; the whole estimate, step by step, from rewards shuffled within problems; and differences of
    mean states, unless the chosen vectors act at the prompt's end alone, where there are none.
    """
    directions, seed = context.steering.directions(), context.config.seed
    controls = {
        f"control-random-{number}": random_directions(
            directions, seed=MAX_RANDOM_VECTORS * seed + number
        )
        for number in range(context.config.evaluate.num_random_vectors)
    }
    controls["control-shuffled-rewards"] = shuffled_vectors(context)
    if {action.place for action in chosen.actions} != {"prompt_end"}:
        stage = context.stage("directions")
        files = step_files(context, stage, 1)
        worth = advantages_of(context, files.store.read())
        gradients = step_gradients(context, stage, files)
        controls["control-mean-difference"] = mean_differences(directions, gradients, worth)
    return controls
