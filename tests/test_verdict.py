"""A run in a sentence: words say in which direction, figures how much."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from stir_train.config.steering import NoSteering, StaticSteering
from stir_train.evals.verdict import describe_abstention, run_verdict
from stir_train.types.results import MethodRow, SteeringTrial, TuneReport
from tests.support.results import metrics, results

STEERED = cast(TuneReport, SimpleNamespace(abstains=False))


@pytest.mark.parametrize(
    ("points", "tokens", "said"),
    [
        (
            (0.24, (0.196, 0.286)),
            (-0.181, (-0.2, -0.161)),
            "a gain of 24.0 [19.6, 28.6] points; it takes 18.1 [16.1, 20.0] % fewer tokens.",
        ),
        (
            (-0.054, (-0.098, -0.01)),
            (0.2, (0.1, 0.3)),
            "a loss of 5.4 [1.0, 9.8] points; it takes 20.0 [10.0, 30.0] % more tokens.",
        ),
        (
            (0.01, (-0.02, 0.04)),
            (-0.01, (-0.03, 0.01)),
            "no clear difference (+1.0 [-2.0, +4.0] points); its tokens do not clearly differ "
            "(-1.0 [-3.0, +1.0] %).",
        ),
    ],
)
def test_a_difference_is_told_by_words_and_its_size(
    points: tuple[float, tuple[float, float]], tokens: tuple[float, tuple[float, float]], said: str
) -> None:
    steered = metrics(
        "stir",
        accuracy=0.77,
        delta_accuracy=points[0],
        delta_accuracy_ci95=points[1],
        delta_tokens_fraction=tokens[0],
        delta_tokens_ci95=tokens[1],
    )
    (sentence,) = run_verdict(results("greedy", rows=(MethodRow(steered, "", "tune"),)), STEERED)
    assert sentence == (
        f"Steering the base solves 77.0% of 20 held-out problems, greedy decoding 50.0%: {said}"
    )


@pytest.mark.parametrize(
    ("gain", "interval", "said"),
    [
        (0.05, (-0.05, 0.15), " About 260 tune problems would show a gain of that size"),
        (0.0, (-0.1, 0.1), None),
        (-0.02, (-0.1, 0.06), None),
        # Its accuracy may be much lower: more problems are not what is missing.
        (0.05, (0.01, 0.09), None),
    ],
)
def test_an_abstention_says_how_many_problems_would_show_the_nearest_gain(
    gain: float, interval: tuple[float, float], said: str | None
) -> None:
    """Four times the problems halve an interval: one that reaches from -.05 to .15 then ends at zero."""
    nearest = metrics("static", delta_utility=gain, delta_utility_ci95=interval)
    nothing = NoSteering(depth=0.5)
    trial = SteeringTrial(StaticSteering(strength=2.0), nearest, 64)
    sentence = describe_abstention(TuneReport(nothing, 64, (trial,)))
    assert "none is clearly better than greedy decoding on the 64 problems" in sentence
    assert ("About" in sentence) == (said is not None)
    assert said is None or said in sentence
