"""A run's rollout gradients, what they are weighed by, and controls made from them."""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.config.stages import MAX_RANDOM_VECTORS
from stir_train.directions.advantages import Advantages, accuracy_at_price, leave_one_out
from stir_train.directions.cells import CellSums
from stir_train.directions.controls import permuted_directions, random_directions
from stir_train.runtime.context import RunContext
from stir_train.stores.directions import gradients_file, load_gradients, load_points, points_file
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.directions import DirectionSet, RolloutGradients
from stir_train.types.reports import CellSummary
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import ControlBasis


def advantages_of(context: RunContext, graded: Sequence[GradedRollout]) -> Advantages:
    """What rollouts are worth beside the others of their problems: accuracy, less what tokens cost."""
    config = context.config
    price = config.directions.token_price / config.generation.max_new_tokens
    return leave_one_out(graded, accuracy_at_price(price))


def read_gradients(context: RunContext) -> RolloutGradients:
    """The gradients of all chunks, of a finished stage or once all are made."""
    stage, identity = context.stage("directions"), context.resources.described.identity
    num_chunks = RolloutStore(context.stage("rollout")).num_chunks()
    return RolloutGradients.concatenate(
        [
            load_gradients(stage.verified(gradients_file(chunk)), identity)
            for chunk in range(num_chunks)
        ]
    )


def along_gradients(
    context: RunContext, basis: ControlBasis
) -> tuple[ControlBasis, tuple[CellSummary, ...]]:
    """A basis whose entries steer along the reward gradients at the states nearest to their keys.

    Reads the points of one chunk at a time.

    Raises:
        StageError: If some block has no gradient at any control point.
    """
    stage, identity = context.stage("directions"), context.resources.described.identity
    rollouts = RolloutStore(context.stage("rollout"))
    sums = CellSums(basis)
    for chunk in range(rollouts.num_chunks()):
        worth = advantages_of(context, rollouts.read_chunk("", chunk))
        if worth.by_rollout:
            points, blocks = load_points(stage.verified(points_file(chunk)), identity)
            sums.add(points, blocks, worth)
    return sums.directions()


def vector_controls(context: RunContext) -> dict[str, DirectionSet]:
    """What should not work at the same places and norms.

    Random directions, and the whole estimate from rewards shuffled within problems.
    """
    directions, seed = context.steering.directions(), context.config.seed
    controls = {
        f"control-random-{number}": random_directions(
            directions, seed=MAX_RANDOM_VECTORS * seed + number
        )
        for number in range(context.config.evaluate.num_random_vectors)
    }
    worth = advantages_of(context, RolloutStore(context.stage("rollout")).read())
    shuffled = permuted_directions(read_gradients(context), worth, seed=seed)
    return controls | {"control-shuffled-rewards": shuffled.directions}
