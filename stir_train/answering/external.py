"""Completions that something else sampled, read by the run's own model as if it had sampled them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from stir_train.answering.interface import BASE
from stir_train.errors import StageError
from stir_train.generation.backend import (
    Ability,
    ControlSpec,
    GenerationBackend,
    GenerationRequest,
    SamplingParams,
)
from stir_train.generation.external.completion import Completion, CompletionSource
from stir_train.generation.teacher_forced import TeacherForced, teacher_force
from stir_train.models.load import LoadedModel
from stir_train.types.answers import Answers
from stir_train.types.rollout import Prompt, Rollout
from stir_train.types.trajectory import CapturedStates

MAX_BATCH_TOKENS = 8192
"""Tokens that go through the model at a time, padding included."""
MAX_EXCESS_NATS, MAX_DEVIATIONS = 0.25, 6.0
"""Completions of another model: so many nats a token less likely than own ones, beyond chance. Rounding and
weights in 8 bits make hundredths of a nat."""


@dataclass(frozen=True)
class ExternalAnswerer:
    """An `Answerer` that samples nothing: it reads states and log-probabilities in one pass a batch.

    Attributes:
        open_source: Opens where completions come from, when the first is asked for.
        open_backend: Gives what decodes with the base model, loaded when it is first asked for.
        open_model: Gives the base model, likewise.
        control: Where control points are, and which blocks are captured there.
        max_batch_tokens: Padded tokens that go through the model at a time.
    """

    open_source: Callable[[], CompletionSource]
    open_backend: Callable[[], GenerationBackend]
    open_model: Callable[[], LoadedModel]
    control: ControlSpec
    max_batch_tokens: int = MAX_BATCH_TOKENS

    @property
    def model(self) -> str:
        """The model that reads, and has to be the one that sampled."""
        return BASE

    @property
    def needs(self) -> frozenset[Ability]:
        """No ability: completions come from elsewhere and no backend decodes."""
        return frozenset()

    @cached_property
    def source(self) -> CompletionSource:
        """The file or server that completions come from, opened when first asked for."""
        return self.open_source()

    def open(self) -> GenerationBackend:
        """The backend over the base model, which is loaded now if nothing needed it before."""
        return self.open_backend()

    def answer(
        self, prompts: Sequence[Prompt], *, num_samples: int, sampling: SamplingParams
    ) -> Answers:
        """Fetch and read ``num_samples`` completions of every prompt.

        Raises:
            StageError: If another model sampled them.
            StirError: If one cannot be had.
        """
        asked = [GenerationRequest(prompt, k) for prompt in prompts for k in range(num_samples)]
        completions = self.source.complete(asked, sampling)
        rollouts = [
            self._rollout(request, completion)
            for request, completion in zip(asked, completions, strict=True)
        ]
        batches = length_batches(rollouts, self.max_batch_tokens)
        passes = [self._read([rollouts[i] for i in batch], sampling) for batch in batches]
        _require_own(rollouts, passes, sampling)
        return self._joined(rollouts, batches, passes)

    def _rollout(self, request: GenerationRequest, completion: Completion) -> Rollout:
        """The record of a completion, its log-probabilities left out."""
        prompt, token_ids = request.prompt, completion.token_ids
        return Rollout(
            prompt_id=prompt.prompt_id,
            sample=request.sample,
            prompt_token_ids=prompt.token_ids,
            token_ids=token_ids,
            logprobs=(),
            # Decoding never feeds the last token, so that nothing is read or steered there.
            control_points=self.control.automaton.find(token_ids[:-1], prompt.token_ids),
            finish_reason=completion.finish_reason,
            forward_passes=1,
        )

    def _read(self, rollouts: Sequence[Rollout], sampling: SamplingParams) -> TeacherForced:
        return teacher_force(
            self.open_model(),
            rollouts,
            self.control.capture_blocks,
            max_points=self.control.max_points,
            temperature=sampling.temperature,
        )

    def _joined(
        self,
        rollouts: Sequence[Rollout],
        batches: Sequence[Sequence[int]],
        passes: Sequence[TeacherForced],
    ) -> Answers:
        """Everything in the order of the rollouts."""
        read: dict[int, Rollout] = {}
        states: dict[int, CapturedStates] = {}
        for batch, found in zip(batches, passes, strict=True):
            first = 0
            for index, logprobs in zip(batch, found.logprobs, strict=True):
                read[index] = dataclasses.replace(
                    rollouts[index], logprobs=tuple(logprobs.tolist())
                )
                end = first + min(len(rollouts[index].control_points), self.control.max_points)
                states[index] = CapturedStates(
                    found.states.labels[first:end],
                    found.states.blocks,
                    found.states.states[first:end],
                )
                first = end
        order = range(len(rollouts))
        return Answers(
            tuple(read[index] for index in order),
            len(passes),
            CapturedStates.concatenate([states[index] for index in order]),
        )


def length_batches(rollouts: Sequence[Rollout], max_tokens: int) -> list[list[int]]:
    """Indices of rollouts of like length, within a padded size; longest first."""

    def length(index: int) -> int:
        return len(rollouts[index].prompt_token_ids) + len(rollouts[index].token_ids)

    batches: list[list[int]] = []
    for index in sorted(range(len(rollouts)), key=length, reverse=True):
        if batches and (len(batches[-1]) + 1) * length(batches[-1][0]) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _require_own(
    rollouts: Sequence[Rollout], passes: Sequence[TeacherForced], sampling: SamplingParams
) -> None:
    """Check that the run's own model can have sampled the completions.

    Raises:
        StageError: If they are too unlikely under it.
    """
    num_tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    excess = float(torch.cat([found.excess_nats for found in passes]).sum())
    deviation = float(torch.cat([found.variances for found in passes]).sum()) ** 0.5
    if excess > MAX_DEVIATIONS * deviation and excess > MAX_EXCESS_NATS * num_tokens:
        raise StageError(
            f"the completions were sampled from another model: under model.name at temperature "
            f"{sampling.temperature:g} their tokens are {excess / num_tokens:.2f} nats less likely on "
            f"average than samples of its own (at most {MAX_EXCESS_NATS:g} would be rounding); sample "
            "from the same weights, revision and dtype, without an adapter"
        )
