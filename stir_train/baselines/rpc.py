"""Votes weighted by path probability, improbable paths pruned (RPC, arXiv 2502.00511).

The paper's: an answer's weight is the sum of the probabilities of the distinct paths that give it (the
geometric mean over a path's tokens); a path is pruned before that if its probability is below the mean of the
problem's paths and a mixture of two Weibull distributions fitted to them puts it into the lower part.
Ours: the mean alone decides, since eight samples say nothing about a mixture's five parameters, and whether to
prune is tuned. The probabilities are those recorded in decoding, at temperature 1, so no pass is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stir_train.baselines.interface import AnsweringContext, Setting
from stir_train.baselines.self_consistency import Vote, elect, sample_votes
from stir_train.baselines.untaught import Untaught
from stir_train.types.rollout import Prompt, Rollout

GRID = [{"samples": n, "prune": prune} for n in (4, 8) for prune in ("yes", "no")]


def vote_by_probability(
    answering: AnsweringContext, setting: Setting, prompts: Sequence[Prompt]
) -> list[Rollout]:
    """The first sample of the answer of most probability, the others' tokens beside it."""
    return [
        elect(votes, path_weights(votes, prune=setting["prune"] == "yes"))
        for votes in sample_votes(answering, prompts, int(setting["samples"]))
    ]


RPC = Untaught("rpc", GRID, vote_by_probability)
"""Perplexity consistency after pruning."""


def path_weights(votes: Sequence[Vote], *, prune: bool) -> list[float]:
    """Each path's probability; 0 of one that came before, and of a pruned one."""
    found = [mean_probability(vote.rollout) for vote in votes]
    least = sum(found) / len(found) if prune else 0.0
    weights, seen = [], set()
    for vote, probability in zip(votes, found, strict=True):
        is_new = vote.rollout.token_ids not in seen
        seen.add(vote.rollout.token_ids)
        # Of equal paths the mean may be a rounding above each.
        kept = probability >= least or math.isclose(probability, least)
        weights.append(probability if is_new and kept else 0.0)
    return weights


def mean_probability(rollout: Rollout) -> float:
    """Geometric mean of the probabilities of a completion's tokens."""
    return math.exp(math.fsum(rollout.logprobs) / len(rollout.logprobs))
