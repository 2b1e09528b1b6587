"""The loss of held-out completions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stir_train.distill.objective import DistillLoss
from stir_train.distill.samples import BatchConfig, collate, num_tokens
from stir_train.train.loop import sum_of
from stir_train.types.rollout import Rollout


@torch.no_grad()
def validation_loss(loss: DistillLoss, samples: Sequence[Rollout], batching: BatchConfig) -> float:
    """Mean over tokens (nats) of completions that nobody is trained on, without dropout.

    Args:
        loss: Of an objective without a teacher.
        samples: The completions.
        batching: How many at a time.
    """
    was_training = loss.module.training
    loss.module.eval()
    num_targets = num_tokens(samples)
    total = 0.0
    for first in range(0, len(samples), batching.batch_size):
        some = samples[first : first + batching.batch_size]
        total += float(sum_of(loss(collate(some, batching.pad_token_id, num_targets))))
    loss.module.train(was_training)
    return total
