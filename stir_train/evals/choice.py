"""Which settings are deployed, of those that were tried."""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.config.steering import NoSteering, SteeringConfig
from stir_train.types.results import SteeringTrial


def choose(
    trials: Sequence[SteeringTrial], base: SteeringConfig, *, max_accuracy_loss: float
) -> SteeringConfig:
    """The settings of most utility among those that gain, or none.

    Args:
        trials: Those that answered every problem; of equals the first is chosen.
        base: What is left alone where nothing gains.
        max_accuracy_loss: A greater loss of accuracy must be excluded by its 95 % interval.
    """
    gains = [trial for trial in trials if trial.is_gain(max_accuracy_loss)]
    if not gains:
        return NoSteering.like(base)
    return max(gains, key=lambda trial: trial.metrics.utility).settings
