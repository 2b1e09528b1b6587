"""What vectors gained on the tune split by their norm, beside what their gradient predicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from stir_train.config.places import estimated_at
from stir_train.config.steering import VectorAction, VectorSteering
from stir_train.types.reports import DirectionsReport
from stir_train.types.results import Interval, SteeringTrial


@dataclass(frozen=True)
class StrengthCurve:
    """What a vector gained at one place, by its norm.

    Attributes:
        title: The place and the depth of the block.
        norms: ``[K]``, ascending.
        gains: ``[K]``, accuracy gained over greedy decoding on the same problems.
        intervals: ``[K]``, 95 %.
        slope: First-order gain of sampled reward per unit of norm, less what noise adds to it; None where the
            vector took several steps, of which each has its own.
    """

    title: str
    norms: tuple[float, ...]
    gains: tuple[float, ...]
    intervals: tuple[Interval, ...]
    slope: float | None


def strength_curves(
    trials: Sequence[SteeringTrial], report: DirectionsReport
) -> list[StrengthCurve]:
    """A curve for every place of which several norms were tried alone.

    Args:
        trials: Of tuning; vectors at several places at once are left out.
        report: Has the directions that tuning had; a place's vector is at the block of its first row.
    """
    alone: dict[tuple[str, float], list[tuple[VectorAction, SteeringTrial]]] = defaultdict(list)
    for trial in trials:
        if isinstance(trial.settings, VectorSteering) and len(trial.settings.actions) == 1:
            (action,) = trial.settings.actions
            alone[action.place, action.depth].append((action, trial))
    curves = []
    for (place, depth), tried in alone.items():
        row = next((r for r in report.passing if r.place == estimated_at(tried[0][0].place)), None)
        if len(tried) < 2 or row is None:
            continue
        tried.sort(key=lambda pair: pair[0].strength)
        curves.append(
            StrengthCurve(
                title=f"{place}, depth {depth:g} (block {row.block})",
                norms=tuple(action.strength for action, _ in tried),
                gains=tuple(trial.metrics.delta_accuracy for _, trial in tried),
                intervals=tuple(trial.metrics.delta_accuracy_ci95 for _, trial in tried),
                slope=row.gain_above_chance if len(report.steps) == 1 else None,
            )
        )
    return curves
