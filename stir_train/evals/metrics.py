"""One method's figures against the baseline, on the same items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from stir_train.errors import StageError
from stir_train.evals.intervals import bootstrap_interval, mcnemar_p, ratio_change_interval
from stir_train.types.results import FedPrompts, MethodMetrics
from stir_train.types.rollout import CHECKER_FAILURES, GradedRollout
from stir_train.types.utility import Utility


def compare_to_baseline(
    name: str,
    method: Sequence[GradedRollout],
    baseline: Sequence[GradedRollout],
    *,
    num_resamples: int,
    utility: Utility,
) -> MethodMetrics:
    """Compute a method's figures, paired with a baseline's.

    Args:
        name: The method.
        method: Its answers.
        baseline: Answers to the same problems, in the same order.
        num_resamples: Bootstrap resamples of problems.
        utility: What an answer is worth.

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
    worth = [utility.of(a, t) for a, t in zip(right, tokens, strict=True)]
    base_worth = [utility.of(a, t) for a, t in zip(base, base_tokens, strict=True)]
    utility_gains = [a - b for a, b in zip(worth, base_worth, strict=True)]
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
        no_marker_rate=_mean([float(not g.grade.had_marker) for g in method]),
        no_answer_rate=_mean([float(not g.grade.extracted) for g in method]),
        checker_failure_rate=_mean([float(g.grade.reason in CHECKER_FAILURES) for g in method]),
        intervention_rate=impulses / points if points else 0.0,
        utility=_mean(worth),
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


def mean_utility(answers: Sequence[GradedRollout], utility: Utility) -> float:
    """Mean utility of answers, every generated token counted."""
    return _mean(
        [utility.of(float(g.grade.correct), float(g.rollout.total_tokens)) for g in answers]
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def fed_prompts(answers: Sequence[GradedRollout]) -> FedPrompts:
    """Hash and mean length, in tokens, of the prompts that were answered."""
    given = {item.rollout.prompt_id: item.rollout.prompt_token_ids for item in answers}
    rows = sorted(json.dumps([prompt_id, ids]) for prompt_id, ids in given.items())
    return FedPrompts(
        sha256=hashlib.sha256("\n".join(rows).encode()).hexdigest(),
        tokens_mean=sum(map(len, given.values())) / len(given),
    )
