"""What vectors gained on the tune split by their norm."""

from __future__ import annotations

from typing import Any

from stir_train.config.steering import NoSteering, VectorAction, VectorSteering
from stir_train.evals import plots
from stir_train.evals.strength import StrengthCurve, strength_curves
from stir_train.types.places import Place
from stir_train.types.reports import DirectionEstimate, DirectionsReport, DirectionStep
from stir_train.types.results import SteeringTrial
from tests.support.results import metrics


def row(block: int, place: Place, gain: float) -> DirectionEstimate:
    return DirectionEstimate(block, place, 2 * gain, gain, 0.5, 0.0, 0.0, 0.005, 0.005, 10.0)


def report(*rows: DirectionEstimate, num_steps: int = 1) -> DirectionsReport:
    steps = [DirectionStep(number, (), 0.5, 10.0, rows) for number in range(1, num_steps + 1)]
    return DirectionsReport(tuple(steps), 0.05, 4, 2, 4, 2, 0.0, 1, 1)


def action(place: Place, strength: float) -> VectorAction:
    return VectorAction(place=place, depth=0.5, strength=strength)


def trial(gain: float, *actions: VectorAction) -> SteeringTrial:
    settings: Any = VectorSteering(actions=actions) if actions else NoSteering()
    figures = metrics("x", delta_accuracy=gain, delta_accuracy_ci95=(gain - 0.1, gain + 0.1))
    return SteeringTrial(settings, figures, 10)


def test_single_vectors_make_a_curve_where_several_norms_were_tried() -> None:
    end, held = action("prompt_end", 8.0), action("every_token", 1.0)
    trials = [
        trial(0.3, end),
        trial(0.9, end, held),
        trial(0.1, action("prompt_end", 2.0)),
        trial(0.2, held),
        trial(0.0),
    ]
    rows = [row(4, "everywhere", 0.7), row(2, "prompt_end", 0.05), row(3, "prompt_end", 0.04)]
    (curve,) = strength_curves(trials, report(*rows))
    assert curve == StrengthCurve(
        title="prompt_end, depth 0.5 (block 2)",
        norms=(2.0, 8.0),
        gains=(0.1, 0.3),
        intervals=((0.0, 0.2), (0.3 - 0.1, 0.3 + 0.1)),
        slope=0.05,
    )
    (curve,) = strength_curves([*trials, trial(0.1, action("every_token", 2.0))][3:], report(*rows))
    assert (curve.norms, curve.slope) == ((1.0, 2.0), 0.7)
    assert strength_curves(trials, report()) == []
    picture = plots.strengths([curve, curve])
    assert picture.startswith("<svg")
    assert picture.count("every_token, depth 0.5 (block 4)") == 2, "text stays text"


def test_the_first_steps_slope_is_not_drawn_for_a_vector_of_several() -> None:
    trials = [trial(0.1, action("prompt_end", 1.0)), trial(0.2, action("prompt_end", 2.0))]
    (curve,) = strength_curves(trials, report(row(2, "prompt_end", 0.05), num_steps=2))
    assert curve.slope is None
    dashes = "stroke-dasharray"
    one_step = StrengthCurve(curve.title, curve.norms, curve.gains, curve.intervals, slope=0.05)
    assert plots.strengths([one_step]).count(dashes) == plots.strengths([curve]).count(dashes) + 1
