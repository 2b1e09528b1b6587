"""Which settings are deployed, of those that were tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stir_train.config.steering import NoSteering, SteeringConfig, VectorSteering
from stir_train.types.results import MethodMetrics, PassedOver, SteeringTrial

Against = Callable[[SteeringTrial, SteeringTrial], MethodMetrics]
"""One trial's figures against another's, paired."""


def choose(
    trials: Sequence[SteeringTrial],
    base: SteeringConfig,
    *,
    max_accuracy_loss: float,
    against: Against,
) -> tuple[SteeringConfig, PassedOver | None]:
    """The settings of most utility among those that gain, or none.

    Fixed vectors decide nothing while they steer. A controller that does must beat the best of them by the
    interval of the paired difference; if it does not, the vectors are deployed, which are simpler.

    Args:
        trials: Those that answered every problem; of equals the first is chosen.
        base: What is left alone where nothing gains.
        max_accuracy_loss: A greater loss of accuracy must be excluded by its 95 % interval.
        against: Compares two of them on the same problems.

    Returns:
        The choice, and what was passed over for a fixed vector, if anything.
    """
    gains = [trial for trial in trials if trial.is_gain(max_accuracy_loss)]
    if not gains:
        return NoSteering.like(base), None
    best = max(gains, key=_utility)
    fixed = [trial for trial in gains if isinstance(trial.settings, VectorSteering)]
    if not fixed or isinstance(best.settings, VectorSteering):
        return best.settings, None
    simplest = max(fixed, key=_utility)
    metrics = against(best, simplest)
    if metrics.delta_utility_ci95[0] > 0:
        return best.settings, None
    return simplest.settings, PassedOver(best.settings, metrics)


def _utility(trial: SteeringTrial) -> float:
    return trial.metrics.utility
