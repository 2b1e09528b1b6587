"""Distillation losses."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stir_train.distill.samples import IGNORED, SequenceBatch


def sequence_loss(model: nn.Module, batch: SequenceBatch) -> Float[Tensor, ""]:
    """Next-token cross-entropy (nats) over response tokens, stop token included.

    The sum over this part's tokens divided by those of the whole batch: parts and ranks add up to
    the batch's mean.
    """
    device = next(model.parameters()).device
    logits = model(
        input_ids=batch.token_ids.to(device),
        attention_mask=batch.mask.to(device),
        use_cache=False,
    ).logits
    labels = batch.labels[:, 1:].to(device)
    total = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    return total / batch.num_targets
