"""How well a probability predicts a binary outcome: AUROC, Brier score, ECE, reliability."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from stir_train.types.reports import Calibration, ReliabilityBin

NUM_BINS = 10


def calibration(predicted: Float[Tensor, "R"], correct: Float[Tensor, "R"]) -> Calibration:
    """Summarise predictions against outcomes; AUROC is 0.5 where only one outcome occurs."""
    bins = reliability(predicted, correct)
    total = max(1, len(correct))
    return Calibration(
        count=len(correct),
        base_rate=float(correct.mean()),
        auroc=auroc(predicted, correct),
        brier=float((predicted - correct).square().mean()),
        ece=sum(b.count * abs(b.mean_predicted - b.mean_observed) for b in bins) / total,
    )


def auroc(scores: Float[Tensor, "R"], correct: Float[Tensor, "R"]) -> float:
    """Area under the ROC curve by the rank-sum statistic, ties counted half."""
    positive = correct > 0.5
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return 0.5
    unique, inverse, counts = scores.double().unique(return_inverse=True, return_counts=True)
    upper = counts.cumsum(0)
    ranks = (upper - (counts - 1) / 2)[inverse]
    rank_sum = float(ranks[positive].sum())
    assert len(unique) == len(counts)
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def reliability(predicted: Float[Tensor, "R"], correct: Float[Tensor, "R"]) -> list[ReliabilityBin]:
    """Equal-width bins of predicted probability, empty ones left out."""
    index = (predicted * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    bins = []
    for i in range(NUM_BINS):
        inside = index == i
        if inside.any():
            bins.append(
                ReliabilityBin(
                    float(predicted[inside].mean()),
                    float(correct[inside].mean()),
                    int(inside.sum()),
                )
            )
    return bins
