"""A run's rollout gradients, and what they are weighed by."""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.config.import_path import load_object
from stir_train.config.stages import ACCURACY
from stir_train.directions.advantages import (
    Advantages,
    Reward,
    accuracy,
    at_price,
    checked,
    leave_one_out,
)
from stir_train.directions.cells import CellSums
from stir_train.errors import ConfigError
from stir_train.runtime.context import RunContext
from stir_train.stores.directions import load_points, points_file
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.reports import CellSummary
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import ControlBasis


def advantages_of(context: RunContext, graded: Sequence[GradedRollout]) -> Advantages:
    """What rollouts are worth beside the others of their problems: the reward, less what tokens cost."""
    config = context.config
    price = config.directions.token_price / config.generation.max_new_tokens
    return leave_one_out(graded, at_price(_reward(config.directions.reward), price))


def _reward(name: str) -> Reward:
    if name == ACCURACY:
        return accuracy
    function = load_object(name, kind="directions.reward")
    if not callable(function):
        raise ConfigError(f"directions.reward: {name} is no function")
    return checked(function, name=name)


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
