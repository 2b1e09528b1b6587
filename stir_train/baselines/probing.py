"""Asking for the answer in the middle of a completion, and going on if it is not sure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from stir_train.baselines.interface import AnsweringContext
from stir_train.baselines.reading import read
from stir_train.generation.backend import GenerationRequest, PlannedImpulse
from stir_train.types.rollout import Prompt, Rollout

TRIAL_TOKENS = 20


@dataclass
class Progress:
    """A completion in the making, in segments.

    Attributes:
        prompt: What is answered.
        token_ids: So far.
        extra_tokens: Decoded or fed in trials that were thrown away.
        forward_passes: Of everything.
        num_trials: So far.
        finish: Why it ended; None while it goes on.
        planned: What is added at tokens that are already there, whenever they are fed again.
        last_logprobs: Of the tokens that `extend` added last (nats).
    """

    prompt: Prompt
    token_ids: tuple[int, ...] = ()
    extra_tokens: int = 0
    forward_passes: int = 0
    num_trials: int = 0
    finish: str | None = field(default=None)
    planned: tuple[PlannedImpulse, ...] = ()
    last_logprobs: tuple[float, ...] = ()

    def rollout(self) -> Rollout:
        """The finished completion; its log-probabilities are of several passes, and left out."""
        return Rollout(
            prompt_id=self.prompt.prompt_id,
            sample=0,
            prompt_token_ids=self.prompt.token_ids,
            token_ids=self.token_ids,
            logprobs=(math.nan,) * len(self.token_ids),
            control_points=(),
            finish_reason="stop" if self.finish == "stop" else "length",
            preview_tokens=self.extra_tokens,
            forward_passes=self.forward_passes,
        )


def may_try(answering: AnsweringContext, item: Progress, max_trials: int) -> bool:
    """Whether one more trial is allowed, and would fit the model's context wherever it came."""
    longest = len(item.prompt.token_ids) + answering.greedy.max_new_tokens
    needed = longest + len(answering.answer_prompt) + TRIAL_TOKENS
    return item.num_trials < max_trials and needed <= answering.loaded.max_tokens


def extend(answering: AnsweringContext, going: Sequence[Progress], stops: Sequence[int]) -> None:
    """Go on greedily until the end or one of ``stops``, which is kept; in place."""
    sampling = dataclasses.replace(
        answering.greedy, stop_token_ids=(*answering.greedy.stop_token_ids, *stops)
    )
    room = [item for item in going if len(item.token_ids) < sampling.max_new_tokens]
    for item in going:
        if len(item.token_ids) >= sampling.max_new_tokens:
            item.finish = "length"
    if not room:
        return
    requests = [GenerationRequest(item.prompt, 0, item.token_ids, item.planned) for item in room]
    made = answering.engine.generate(requests, sampling, seed=answering.seed).rollouts
    for item, rollout in zip(room, made, strict=True):
        item.last_logprobs = rollout.logprobs[len(item.token_ids) :]
        item.token_ids = rollout.token_ids
        item.forward_passes += rollout.forward_passes
        if rollout.truncated:
            item.finish = "length"
        elif rollout.token_ids[-1] in answering.greedy.stop_token_ids:
            item.finish = "stop"


def try_answers(
    answering: AnsweringContext, prefixes: Sequence[tuple[Progress, tuple[int, ...]]]
) -> list[Rollout]:
    """Let prefixes be answered at once, greedily and shortly; the trials, without their prefixes.

    Their cost is added to the completions they belong to.
    """
    if not prefixes:
        return []
    sampling = dataclasses.replace(answering.greedy, max_new_tokens=TRIAL_TOKENS)
    requests = [
        GenerationRequest(
            dataclasses.replace(
                item.prompt, token_ids=(*item.prompt.token_ids, *prefix, *answering.answer_prompt)
            )
        )
        for item, prefix in prefixes
    ]
    made = answering.engine.generate(requests, sampling, seed=answering.seed).rollouts
    for (item, _), trial in zip(prefixes, made, strict=True):
        item.num_trials += 1
        item.extra_tokens += len(answering.answer_prompt) + len(trial.token_ids)
        item.forward_passes += trial.forward_passes
    return list(made)


def accept(
    answering: AnsweringContext, item: Progress, prefix: tuple[int, ...], trial: Rollout
) -> None:
    """End a completion with the trial that was asked for after ``prefix``, if they fit the token budget; in place."""
    whole = (*prefix, *answering.answer_prompt, *trial.token_ids)
    if len(whole) > answering.greedy.max_new_tokens:
        return  # no method may write more than greedy decoding
    item.extra_tokens -= len(answering.answer_prompt) + len(trial.token_ids)
    item.token_ids = whole
    item.finish = "stop"


def mean_entropies(answering: AnsweringContext, trials: Sequence[Rollout]) -> list[float]:
    """Mean entropy (nats) of the distributions that each trial's tokens were taken from."""
    entropies: list[float] = []
    for reading in read(answering.loaded, trials, {}):
        logprobs = reading.logits[:, :-1].float().log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        counted = reading.response[:, 1:].to(entropy.device)
        entropies += (torch.where(counted, entropy, 0).sum(1) / counted.sum(1)).tolist()
    return entropies
