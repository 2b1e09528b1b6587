"""One method's figures against the baseline, on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stir_train.errors import StageError
from stir_train.evals.intervals import bootstrap_interval, mcnemar_p, ratio_change_interval
from stir_train.types.rollout import CHECKER_FAILURES, GradedRollout


@dataclass(frozen=True)
class MethodMetrics:
    """A row of the results table. Accuracy deltas are fractions; token deltas are relative.

    Attributes:
        tokens_mean: Every generated token, previews included.
        committed_tokens_mean: Tokens of the completion itself.
        extra_tokens_mean: Preview tokens thrown away.
        forward_passes_mean: Model calls each item took part in.
        checker_failure_rate: Answers whose checker timed out or crashed; counted as wrong.
        intervention_rate: Impulses per control point reached.
        utility: Mean of ``1[correct] - token_price * tokens / max_new_tokens``.
    """

    name: str
    accuracy: float
    accuracy_ci95: tuple[float, float]
    tokens_mean: float
    committed_tokens_mean: float
    extra_tokens_mean: float
    forward_passes_mean: float
    truncated_rate: float
    no_answer_rate: float
    checker_failure_rate: float
    intervention_rate: float
    utility: float
    delta_accuracy: float
    delta_accuracy_ci95: tuple[float, float]
    delta_tokens_fraction: float
    delta_tokens_ci95: tuple[float, float]
    delta_utility: float
    delta_utility_ci95: tuple[float, float]
    mcnemar_p: float
    wins: int
    losses: int


def compare_to_baseline(
    name: str,
    method: Sequence[GradedRollout],
    baseline: Sequence[GradedRollout],
    *,
    num_resamples: int,
    price_per_token: float,
) -> MethodMetrics:
    """Compute a method's row; ``price_per_token`` is in accuracy, for the utility.

    Raises:
        StageError: If the two did not answer the same items in the same order.
    """
    if [g.rollout.prompt_id for g in method] != [g.rollout.prompt_id for g in baseline]:
        raise StageError(f"{name} and the baseline did not answer the same items")
    right = [float(g.grade.correct) for g in method]
    base = [float(g.grade.correct) for g in baseline]
    tokens = [float(g.rollout.total_tokens) for g in method]
    base_tokens = [float(g.rollout.total_tokens) for g in baseline]
    differences = [a - b for a, b in zip(right, base, strict=True)]
    utility = [a - price_per_token * t for a, t in zip(right, tokens, strict=True)]
    base_utility = [a - price_per_token * t for a, t in zip(base, base_tokens, strict=True)]
    utility_gains = [a - b for a, b in zip(utility, base_utility, strict=True)]
    wins, losses = differences.count(1.0), differences.count(-1.0)
    points = sum(len(g.rollout.control_points) for g in method)
    impulses = sum(len(g.rollout.impulses) for g in method)
    return MethodMetrics(
        name=name,
        accuracy=_mean(right),
        accuracy_ci95=bootstrap_interval(right, num_resamples=num_resamples),
        tokens_mean=_mean(tokens),
        committed_tokens_mean=_mean([float(len(g.rollout.token_ids)) for g in method]),
        extra_tokens_mean=_mean([float(g.rollout.preview_tokens) for g in method]),
        forward_passes_mean=_mean([float(g.rollout.forward_passes) for g in method]),
        truncated_rate=_mean([float(g.rollout.truncated) for g in method]),
        no_answer_rate=_mean([float(not g.grade.extracted) for g in method]),
        checker_failure_rate=_mean([float(g.grade.reason in CHECKER_FAILURES) for g in method]),
        intervention_rate=impulses / points if points else 0.0,
        utility=_mean(utility),
        delta_utility=_mean(utility_gains),
        delta_utility_ci95=bootstrap_interval(utility_gains, num_resamples=num_resamples),
        delta_accuracy=_mean(differences),
        delta_accuracy_ci95=bootstrap_interval(differences, num_resamples=num_resamples),
        delta_tokens_fraction=_mean(tokens) / _mean(base_tokens) - 1,
        delta_tokens_ci95=ratio_change_interval(base_tokens, tokens, num_resamples=num_resamples),
        mcnemar_p=mcnemar_p(wins, losses),
        wins=wins,
        losses=losses,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
