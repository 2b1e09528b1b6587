"""Log-probability of recorded tokens from the last hidden states, and its gradient, a few rows at a time."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stir_train.generation.backend import SamplingParams
from stir_train.generation.sampling import kept_tokens
from stir_train.models.output_head import OutputHead


def log_likelihood(
    head: OutputHead,
    states: Float[Tensor, "R D"],
    targets: Int[Tensor, "R"],
    sampling: SamplingParams,
    *,
    filtered: bool,
) -> tuple[Float[Tensor, "R"], Float[Tensor, "R D"]]:
    """Log-probability of each target after its state, and its gradient in the state.

    Args:
        head: The model's output layer.
        states: What it is fed.
        targets: The token that was sampled after each.
        sampling: Logits are divided by its temperature.
        filtered: Under top-p and top-k of ``sampling``, renormalised; the set of kept tokens is held
            fixed, as it is almost everywhere. Otherwise all tokens are kept.

    Returns:
        Nats, in float32 or better, and gradients in the dtype of ``states``.
    """
    logprobs, gradients = [], []
    filtered = filtered and (sampling.top_k > 0 or sampling.top_p < 1)
    rows = head.rows_at_once
    for some, wanted in zip(states.split(rows), targets.split(rows), strict=True):
        leaf = some.detach().requires_grad_()
        with torch.enable_grad():
            logits = head.logits(leaf) / sampling.temperature
            if filtered:
                kept = kept_tokens(logits.detach().softmax(-1), sampling)
                # It was sampled, so it was kept: only rounding can say otherwise.
                kept.scatter_(-1, wanted[:, None], torch.ones_like(kept[:, :1]))
                logits = logits.masked_fill(~kept, -torch.inf)
            nats = -nn.functional.cross_entropy(logits, wanted, reduction="none")
        gradients.append(torch.autograd.grad(nats.sum(), leaf)[0])
        logprobs.append(nats.detach())
    return torch.cat(logprobs), torch.cat(gradients)
