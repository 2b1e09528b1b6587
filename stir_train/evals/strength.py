"""What vectors gained on the tune split by their norm, beside what their gradient predicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from stir_train.config.steering import VectorAction, VectorSteering
from stir_train.types.directions import estimated_at
from stir_train.types.reports import DirectionEstimate
from stir_train.types.results import Interval, SteeringTrial


@dataclass(frozen=True)
class StrengthCurve:
    """What a vector gained at one place, by its norm.

    Attributes:
        title: The place and the depth of the block.
        norms: ``[K]``, ascending.
        gains: ``[K]``, accuracy gained over greedy decoding on the same problems.
        intervals: ``[K]``, 95 %.
        slope: First-order gain of sampled reward per unit of norm.
    """

    title: str
    norms: tuple[float, ...]
    gains: tuple[float, ...]
    intervals: tuple[Interval, ...]
    slope: float


def strength_curves(
    trials: Sequence[SteeringTrial], passing: Sequence[DirectionEstimate]
) -> list[StrengthCurve]:
    """A curve for every place of which several norms were tried alone.

    Args:
        trials: Of tuning; vectors at several places at once are left out.
        passing: The directions that tuning had, largest relative gain first; a place's vector is at
            the block of its first row.
    """
    alone: dict[tuple[str, float], list[tuple[VectorAction, SteeringTrial]]] = defaultdict(list)
    for trial in trials:
        if isinstance(trial.settings, VectorSteering) and len(trial.settings.actions) == 1:
            (action,) = trial.settings.actions
            alone[action.place, action.depth].append((action, trial))
    curves = []
    for (place, depth), tried in alone.items():
        row = next((r for r in passing if r.place == estimated_at(tried[0][0].place)), None)
        if len(tried) < 2 or row is None:
            continue
        tried.sort(key=lambda pair: pair[0].strength)
        curves.append(
            StrengthCurve(
                title=f"{place}, depth {depth:g} (block {row.block})",
                norms=tuple(action.strength for action, _ in tried),
                gains=tuple(trial.metrics.delta_accuracy for _, trial in tried),
                intervals=tuple(trial.metrics.delta_accuracy_ci95 for _, trial in tried),
                slope=row.gain,
            )
        )
    return curves
