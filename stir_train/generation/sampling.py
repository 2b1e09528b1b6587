"""From logits to the next token: greedy, or a filtered distribution inverted at one uniform."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.generation.backend import SamplingParams


def next_tokens(
    logits: Float[Tensor, "B V"],
    params: SamplingParams,
    draws: Float[Tensor, "B"] | None,
    seen: Bool[Tensor, "B V"] | None = None,
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """Choose a token per row.

    Args:
        logits: The model's raw logits.
        params: Temperature, filters, penalty.
        draws: Uniforms in [0, 1); unused when greedy.
        seen: Tokens already in each row, when a repetition penalty is set.

    Returns:
        Token ids, and their log-probability (nats) under the unfiltered distribution at
        temperature 1.
    """
    logits = logits.float()
    scores = logits if seen is None else _penalised(logits, seen, params.repetition_penalty)
    if params.temperature == 0:
        tokens = scores.argmax(-1)
    else:
        assert draws is not None, "sampling needs draws"
        tokens = _invert(_filtered_probabilities(scores, params), draws)
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    return tokens, chosen - logits.logsumexp(-1)


def _filtered_probabilities(
    logits: Float[Tensor, "B V"], params: SamplingParams
) -> Float[Tensor, "B V"]:
    probabilities = torch.softmax(logits / params.temperature, -1)
    if params.top_k == 0 and params.top_p == 1:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < params.top_p
    if params.top_k:
        kept[:, params.top_k :] = False
    mask = torch.zeros_like(kept).scatter(-1, order, kept)
    return probabilities * mask


def _invert(probabilities: Float[Tensor, "B V"], draws: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Invert the cumulative distribution in vocabulary order, in double precision."""
    cumulative = probabilities.double().cumsum(-1)
    targets = draws[:, None].to(cumulative) * cumulative[:, -1:]
    # The first index whose cumulative mass exceeds the target has positive probability.
    tokens = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    return tokens.clamp_max(probabilities.shape[-1] - 1)


def _penalised(
    logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"], penalty: float
) -> Float[Tensor, "B V"]:
    scaled = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, scaled, logits)
