"""Votes weighted by the rank of a sample's self-certainty (arXiv 2502.18581).

The paper's: a sample's self-certainty is the KL divergence from its next-token distributions to the uniform one,
mean over its tokens; of N samples the one of rank r (1 the surest) votes with weight ``(N - r + 1)^p``. Ours: N
is 4 or 8, p is tuned, samples are drawn as for self-consistency, and the surest sample of the winning answer
is what is returned. The distributions are read in a pass of their own over the finished samples, which is counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from stir_train.baselines.interface import EDITS, AnsweringContext, Setting
from stir_train.baselines.reading import read
from stir_train.baselines.self_consistency import Vote, elect, sample_votes
from stir_train.baselines.untaught import Untaught
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout

GRID = [{"samples": n, "power": p} for n in (4, 8) for p in (0.5, 1.0, 2.0)]


def vote_by_certainty(
    answering: AnsweringContext, setting: Setting, prompts: Sequence[Prompt]
) -> list[Rollout]:
    """The surest sample of the answer that wins, the others' tokens beside it."""
    answered = []
    for votes in sample_votes(answering, prompts, int(setting["samples"])):
        certainties = self_certainties(answering.loaded, [vote.rollout for vote in votes])
        read_too = [  # the certainties are read in a pass of their own
            dataclasses.replace(
                vote,
                rollout=dataclasses.replace(
                    vote.rollout, forward_passes=vote.rollout.forward_passes + 1
                ),
            )
            for vote in votes
        ]
        answered.append(borda(read_too, certainties, float(setting["power"])))
    return answered


SELF_CERTAINTY = Untaught("self-certainty", GRID, vote_by_certainty, EDITS)
"""Borda votes by self-certainty."""


def borda(votes: Sequence[Vote], scores: Sequence[float], power: float) -> Rollout:
    """Elect, a vote of rank r among N counting ``(N - r + 1)^power``; ranks are among those that vote."""
    voting = [i for i, vote in enumerate(votes) if vote.answer]
    silent = [i for i, vote in enumerate(votes) if not vote.answer]
    order = sorted(voting, key=lambda i: -scores[i])
    weights = [(len(order) - rank) ** power for rank in range(len(order))]
    return elect([votes[i] for i in (*order, *silent)], [*weights, *(0.0 for _ in silent)])


def self_certainties(loaded: LoadedModel, rollouts: Sequence[Rollout]) -> list[float]:
    """Mean KL (nats) from the distributions of completion tokens to the uniform one."""
    found: list[float] = []
    for reading in read(loaded, rollouts, {}):
        log_p = reading.logits[:, :-1].float().log_softmax(-1)
        divergence = -log_p.mean(-1) - math.log(log_p.shape[-1])
        counted = reading.response[:, 1:].to(divergence.device)
        found += (torch.where(counted, divergence, 0).sum(1) / counted.sum(1)).tolist()
    return found
