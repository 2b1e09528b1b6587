"""From logits to the next token: greedy, or a filtered distribution inverted at one uniform."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.generation.backend import SamplingParams

NUM_LIKELIEST = 128
"""Tokens among which the filters look first. A sort of a real vocabulary takes as long as the model's
pass; the nucleus of most steps is a few tokens, and the rare wider one falls back to the sort."""
BLOCK = 512
"""Tokens whose probabilities are summed together before the cumulative sum."""
CACHED_LOGITS = 1 << 20
"""Logits that a CPU chooses from at once: what is made of 4 MiB stays in its cache."""


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
    size = max(1, CACHED_LOGITS // logits.shape[-1])
    if logits.device.type != "cpu" or len(logits) <= size:
        return _next_tokens(logits, params, draws, seen)
    parts = [
        _next_tokens(
            logits[rows],
            params,
            None if draws is None else draws[rows],
            None if seen is None else seen[rows],
        )
        for rows in (slice(begin, begin + size) for begin in range(0, len(logits), size))
    ]
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _next_tokens(
    logits: Float[Tensor, "B V"],
    params: SamplingParams,
    draws: Float[Tensor, "B"] | None,
    seen: Bool[Tensor, "B V"] | None,
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    logits = logits.float()
    scores = logits if seen is None else _penalised(logits, seen, params.repetition_penalty)
    if params.temperature == 0:
        tokens = scores.argmax(-1)
    else:
        assert draws is not None, "sampling needs draws"
        tokens = _sample(scores, params, draws)
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    return tokens, chosen - logits.logsumexp(-1)


def _sample(
    logits: Float[Tensor, "B V"], params: SamplingParams, draws: Float[Tensor, "B"]
) -> Int[Tensor, "B"]:
    """Draw from the filtered distribution: keep the likeliest tokens, invert over those kept."""
    probabilities = torch.softmax(logits / params.temperature, -1)
    if params.top_k == 0 and params.top_p == 1:
        return _invert(probabilities, draws)
    size = probabilities.shape[-1]
    num_likeliest = max(NUM_LIKELIEST, params.top_k + 1)
    if 2 * num_likeliest >= size:
        return _invert_kept(*_keep_of_all(probabilities, params), draws)
    kept, token_ids, is_certain = _keep_of_likeliest(probabilities, params, num_likeliest)
    tokens = _invert_kept(kept, token_ids, draws)
    unsure = (~is_certain).nonzero()[:, 0]
    if len(unsure):
        of_all = _keep_of_all(probabilities[unsure], params)
        tokens[unsure] = _invert_kept(*of_all, draws[unsure])
    return tokens


def _keep_of_all(
    probabilities: Float[Tensor, "B V"], params: SamplingParams
) -> tuple[Float[Tensor, "B V"], Int[Tensor, "B V"]]:
    """Probabilities in order of token id, 0 where filtered out, and the ids; sorts the vocabulary."""
    kept = kept_tokens(probabilities, params)
    token_ids = torch.arange(probabilities.shape[-1], device=probabilities.device)
    return probabilities * kept, token_ids.expand_as(probabilities)


def kept_tokens(probabilities: Float[Tensor, "B V"], params: SamplingParams) -> Bool[Tensor, "B V"]:
    """Which tokens top-p and top-k leave, among equals those of lower id first."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    kept = _is_kept(ordered, params)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def _keep_of_likeliest(
    probabilities: Float[Tensor, "B V"], params: SamplingParams, num_likeliest: int
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"], Bool[Tensor, "B"]]:
    """The same looking at the ``K`` likeliest tokens alone, and whether nothing beyond them is kept.

    That is certain where what is kept ends above the least likely of them: then neither the nucleus nor
    a tie reaches further, and the result is that of the whole vocabulary.
    """
    likeliest, token_ids = probabilities.topk(num_likeliest, dim=-1, sorted=False)
    token_ids, by_id = token_ids.sort(dim=-1)
    likeliest = likeliest.gather(-1, by_id)
    # Stable, from ids in order: among equals the lower id comes first, as in a sort of all.
    ordered, order = likeliest.sort(dim=-1, descending=True, stable=True)
    kept = _is_kept(ordered, params)
    last_kept = torch.where(kept, ordered, torch.inf).min(-1).values
    mask = torch.zeros_like(kept).scatter(-1, order, kept)
    return likeliest * mask, token_ids, last_kept > ordered[:, -1]


def _is_kept(ordered: Float[Tensor, "B K"], params: SamplingParams) -> Bool[Tensor, "B K"]:
    """Which of the probabilities, the largest first, are in the nucleus and among the ``top_k``."""
    kept = ordered.cumsum(-1) - ordered < params.top_p
    if params.top_k:
        kept[:, params.top_k :] = False
    return kept


def _invert_kept(
    kept: Float[Tensor, "B K"], token_ids: Int[Tensor, "B K"], draws: Float[Tensor, "B"]
) -> Int[Tensor, "B"]:
    return token_ids.gather(-1, _invert(kept, draws)[:, None])[:, 0]


def _invert(probabilities: Float[Tensor, "B K"], draws: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Invert the cumulative distribution in double precision: sums of blocks first, then one block.

    Returns the first index whose cumulative mass exceeds ``draw * total``; it has positive probability.
    """
    num_blocks = -(-probabilities.shape[-1] // BLOCK)
    padded = torch.nn.functional.pad(
        probabilities, (0, num_blocks * BLOCK - probabilities.shape[-1])
    ).view(-1, num_blocks, BLOCK)
    before = padded.sum(-1, dtype=torch.double).cumsum(-1)
    targets = draws[:, None].to(before) * before[:, -1:]
    block = torch.searchsorted(before, targets, right=True).clamp_max(num_blocks - 1)
    inside = padded.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].double().cumsum(-1)
    start = torch.where(block > 0, before.gather(1, (block - 1).clamp_min(0)), 0.0)
    # By rounding, the sums within a block may end below the target that its total exceeded.
    last = (inside < inside[:, -1:]).sum(-1)
    place = torch.searchsorted(inside, targets - start, right=True)[:, 0]
    return block[:, 0] * BLOCK + torch.minimum(place, last)


def _penalised(
    logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"], penalty: float
) -> Float[Tensor, "B V"]:
    scaled = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, scaled, logits)
