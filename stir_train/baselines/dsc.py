"""More samples for problems that look harder (DSC, arXiv 2408.13457).

The paper's: the model ranks the problems by difficulty; the easy ones get one sample, the others as many as
problems of their difficulty needed, more until the votes are decided. When they are is adaptive consistency's
rule (arXiv 2305.11860): with probability 0.95 the leading answer stays ahead of the next, under a uniform prior of
their shares. Ours: difficulty is how improbable the greedy completion is (the mean of its recorded
log-probabilities), which costs nothing, against a tuned quantile of right harvest samples, not a rank among the
problems asked together; the greedy completion votes too; samples come one at a time, up to a number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from stir_train.baselines.interface import (
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.baselines.rpc import mean_probability
from stir_train.baselines.self_consistency import Vote, elect, votes_of, voting_sampling
from stir_train.generation.backend import Ability, GenerationRequest
from stir_train.types.rollout import Prompt, Rollout

CONFIDENCE = 0.95
QUANTILES = (0.1, 0.25, 0.5)
MAX_SAMPLES = (4, 8)


class Dsc:
    """One greedy answer where it is sure, votes until they are decided elsewhere."""

    name = "dsc"
    needs = frozenset[Ability]()

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """How probable right completions are, at every quantile of the grid."""
        right = [
            mean_probability(item.rollout)
            for item in harvest.graded
            if item.grade.correct and item.rollout.token_ids
        ]
        if not right:
            raise NotApplicable("no completion of the harvest split is right")
        found = torch.tensor(right, dtype=torch.float64)
        return {f"quantile {q:g}": found.quantile(q) for q in QUANTILES}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """What counts as hard, and the most samples of it."""
        return [{"quantile": q, "samples": n} for n in MAX_SAMPLES for q in QUANTILES]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy; of the hard ones the first sample of the answer that leads, the others' tokens beside it."""
        least = float(parameters[f"quantile {setting['quantile']:g}"])
        greedy = votes_of(answering, [GenerationRequest(p) for p in prompts], answering.greedy)
        made = [[vote] for vote in greedy]
        hard = [i for i, vote in enumerate(greedy) if mean_probability(vote.rollout) < least]
        for sample in range(int(setting["samples"])):
            requests = [GenerationRequest(prompts[i], sample) for i in hard]
            votes = votes_of(answering, requests, voting_sampling(answering)) if hard else []
            for i, vote in zip(hard, votes, strict=True):
                made[i].append(vote)
            hard = [i for i in hard if not is_decided(made[i])]
        return [elect(votes_of_one) for votes_of_one in made]


def is_decided(votes: Sequence[Vote]) -> bool:
    """Whether the leading answer stays ahead of the next with the confidence asked for."""
    counts = sorted(Counter(v.answer for v in votes if v.answer).values(), reverse=True)
    first, second = [*counts, 0, 0][:2]
    return probability_of_lead(first, second) >= CONFIDENCE


def probability_of_lead(first: int, second: int) -> float:
    """That a share under ``Beta(first + 1, second + 1)`` exceeds a half."""
    throws = first + second + 1
    return sum(math.comb(throws, heads) for heads in range(first + 1)) / 2**throws
