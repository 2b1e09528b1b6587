"""A completion that something else sampled, and what says that it was sampled as the run asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.types.rollout import FinishReason


@dataclass(frozen=True)
class Completion:
    """What was sampled for one request.

    Attributes:
        token_ids: ``Int[T']``, its stop token included when there is one.
        finish_reason: ``stop``, or ``length`` when the token budget cut it off.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason


class CompletionSource(Protocol):
    """Something that samples completions of prompts elsewhere: a file of them, or a server."""

    def complete(
        self, requests: Sequence[GenerationRequest], sampling: SamplingParams
    ) -> list[Completion]:
        """A completion of each request, in order.

        Raises:
            StirError: If one cannot be had, or was not sampled as ``sampling`` asks.
        """
        ...


def fault_of(completion: Completion, sampling: SamplingParams, *, vocab_size: int) -> str | None:
    """Why a completion cannot have been sampled as the run asks; None if it can."""
    token_ids, budget = completion.token_ids, sampling.max_new_tokens
    if not token_ids:
        return "token_ids is empty; a completion has its stop token at least"
    unknown = [token for token in token_ids if not 0 <= token < vocab_size]
    if unknown:
        return f"token id {unknown[0]} is not in the model's vocabulary of {vocab_size}"
    if len(token_ids) > budget:
        return f"{len(token_ids)} tokens, generation.max_new_tokens is {budget}"
    ends = [index for index, token in enumerate(token_ids) if token in sampling.stop_token_ids]
    if ends and ends[0] < len(token_ids) - 1:
        return (
            f"goes on after stop token {token_ids[ends[0]]} at index {ends[0]}; completions end with "
            f"the first of {list(sampling.stop_token_ids)}"
        )
    if completion.finish_reason == "stop" and not ends:
        return (
            f"finish_reason is stop and the last token, {token_ids[-1]}, is none of the stop tokens "
            f"{list(sampling.stop_token_ids)}; the stop token belongs to token_ids"
        )
    if completion.finish_reason == "length" and (ends or len(token_ids) < budget):
        ended = "a stop token" if ends else f"{len(token_ids)} tokens"
        return f"finish_reason is length after {ended}; generation.max_new_tokens is {budget}"
    return None
