"""Voting over samples, stopped early where they agree (SC, arXiv 2203.11171; ESC, 2401.10480).

The papers': sample at temperature 0.8 and nucleus 0.95, vote on the extracted answers, ties to the
first; early stopping samples in windows and stops where one is unanimous. Votes are on answers in the
grader's normal form; a sample without an answer does not vote. Every sample's tokens count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from stir_train.baselines.interface import AnsweringContext, Setting
from stir_train.baselines.untaught import Untaught
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.types.rollout import Prompt, Rollout

TEMPERATURE, TOP_P = 0.8, 0.95
GRID = (
    {"samples": 3, "window": 3},
    {"samples": 8, "window": 2},
    {"samples": 9, "window": 3},
)


def vote_in_windows(
    answering: AnsweringContext, setting: Setting, prompts: Sequence[Prompt]
) -> list[Rollout]:
    """The first sample that gives the winning answer, the others' tokens beside it."""
    sampling = voting_sampling(answering)
    num_samples, window = int(setting["samples"]), int(setting["window"])
    made: list[list[Vote]] = [[] for _ in prompts]
    undecided = list(range(len(prompts)))
    for first in range(0, num_samples, window):
        numbers = range(first, min(first + window, num_samples))
        requests = [GenerationRequest(prompts[i], k) for i in undecided for k in numbers]
        votes = iter(votes_of(answering, requests, sampling))
        for i in undecided:
            made[i] += [next(votes) for _ in numbers]
        undecided = [i for i in undecided if not _unanimous(made[i][first:])]
    return [elect(votes_of_one) for votes_of_one in made]


SELF_CONSISTENCY = Untaught("self-consistency", GRID, vote_in_windows)
"""Majority vote over samples, drawn a window at a time until the vote is decided."""


@dataclass(frozen=True)
class Vote:
    """A sample and the answer that it votes for; none if that is empty."""

    rollout: Rollout
    answer: str


def elect(votes: Sequence[Vote], weights: Sequence[float] | None = None) -> Rollout:
    """The first sample of the answer with most votes, the other samples' tokens beside it.

    Args:
        votes: In the order in which ties are decided.
        weights: What each vote counts; one by default.
    """
    counts: dict[str, float] = {}
    for vote, weight in zip(votes, weights or [1.0] * len(votes), strict=True):
        if vote.answer:
            counts[vote.answer] = counts.get(vote.answer, 0.0) + weight
    # `max` keeps the first of equals, and a dict the order in which answers came.
    winner = max(counts, key=lambda answer: counts[answer]) if counts else votes[0].answer
    elected = next(vote.rollout for vote in votes if vote.answer == winner)
    return dataclasses.replace(
        elected,
        preview_tokens=sum(len(v.rollout.token_ids) for v in votes) - len(elected.token_ids),
        forward_passes=sum(vote.rollout.forward_passes for vote in votes),
    )


def voting_sampling(answering: AnsweringContext) -> SamplingParams:
    """The paper's temperature and nucleus, within the run's limits."""
    return dataclasses.replace(answering.sampled, temperature=TEMPERATURE, top_p=TOP_P, top_k=0)


def sample_votes(
    answering: AnsweringContext, prompts: Sequence[Prompt], num_samples: int
) -> list[list[Vote]]:
    """The votes of so many samples of each prompt."""
    requests = [GenerationRequest(p, k) for p in prompts for k in range(num_samples)]
    votes = votes_of(answering, requests, voting_sampling(answering))
    return [votes[i : i + num_samples] for i in range(0, len(votes), num_samples)]


def votes_of(
    answering: AnsweringContext, requests: Sequence[GenerationRequest], sampling: SamplingParams
) -> list[Vote]:
    """Make samples and read their answers."""
    made = answering.engine.generate(
        requests, sampling, seed=answering.seed, control=answering.control
    )
    texts = [answering.loaded.decode(rollout.token_ids) for rollout in made.rollouts]
    answers = answering.answers_of([request.prompt for request in requests], texts)
    return [
        Vote(rollout, "" if rollout.truncated else answer)
        for rollout, answer in zip(made.rollouts, answers, strict=True)
    ]


def _unanimous(window: Sequence[Vote]) -> bool:
    return len({vote.answer for vote in window}) == 1 and bool(window[0].answer)
