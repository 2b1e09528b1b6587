"""What sampling makes of a method: avg@n, pass@k, majority@n."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from stir_train.evals.intervals import bootstrap_interval
from stir_train.types.results import SampledMetrics
from stir_train.types.rollout import GradedRollout


def pass_at(num_samples: int, num_right: int, k: int) -> float:
    """The unbiased estimate of P(one of k samples is right), ``1 - C(n-c, k) / C(n, k)``."""
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def majority_is_right(samples: Sequence[GradedRollout]) -> bool:
    """Whether the most frequent answer is right; samples without an answer do not vote."""
    votes = Counter(s.grade.extracted for s in samples if s.grade.extracted)
    if not votes:
        return False
    winner = max(votes, key=lambda answer: votes[answer])  # the first of equals
    return next(s.grade.correct for s in samples if s.grade.extracted == winner)


def compare_samples(
    name: str,
    samples: Sequence[GradedRollout],
    baseline: Sequence[GradedRollout],
    *,
    num_resamples: int,
) -> SampledMetrics:
    """Compute a method's figures.

    Args:
        name: The method.
        samples: All of it, an item's next to one another.
        baseline: The same of what it is compared with.
        num_resamples: Bootstrap resamples, of items.
    """
    items, others = _by_item(samples), _by_item(baseline)
    num_samples = len(items[0])
    right = [sum(s.grade.correct for s in item) for item in items]
    rates = [count / num_samples for count in right]
    base_rates = [sum(s.grade.correct for s in item) / len(item) for item in others]
    differences = [a - b for a, b in zip(rates, base_rates, strict=True)]
    votes = [float(majority_is_right(item)) for item in items]
    ks = [2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples]
    return SampledMetrics(
        name=name,
        num_samples=num_samples,
        average=_mean(rates),
        average_ci95=bootstrap_interval(rates, num_resamples=num_resamples),
        delta_average=_mean(differences),
        delta_average_ci95=bootstrap_interval(differences, num_resamples=num_resamples),
        pass_at={k: _mean([pass_at(num_samples, count, k) for count in right]) for k in ks},
        majority=_mean(votes),
        majority_ci95=bootstrap_interval(votes, num_resamples=num_resamples),
        tokens_mean=_mean([float(s.rollout.total_tokens) for s in samples]),
    )


def _by_item(samples: Sequence[GradedRollout]) -> list[list[GradedRollout]]:
    return [list(item) for _, item in groupby(samples, key=lambda s: s.rollout.prompt_id)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
