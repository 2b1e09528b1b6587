"""What all prompts of a call begin with, a system prompt or worked examples: it is fed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stir_train.generation.backend import GenerationCost, GenerationRequest
from stir_train.generation.control_hook import ControlHook, PassPlan
from stir_train.generation.controller import Controller
from stir_train.generation.transformers.slot_cache import SlotCache
from stir_train.generation.transformers.slot_forward import SlotForward

MIN_SHARED_TOKENS = 32
"""Tokens that prompts must have in common to be worth a pass of their own."""


def shared_tokens(
    requests: Sequence[GenerationRequest], controllers: Sequence[Controller]
) -> tuple[int, ...]:
    """The tokens that all prompts begin with, at which nothing is added; none if they are not worth a pass.

    A prompt's last token is never one of them, since what is decided there may differ.
    """
    prompts = {request.prompt.token_ids for request in requests}
    placed = [impulse.place for request in requests for impulse in request.planned]
    placed += [controller.place for controller in controllers]
    if len(prompts) < 2 or "every_token" in placed:
        return ()
    first, last = min(prompts), max(prompts)  # what these two begin with, all do
    agree = [one == other for one, other in zip(first, last, strict=False)]
    count = min([*agree, False].index(False), min(map(len, prompts)) - 1)
    return first[:count] if count >= MIN_SHARED_TOKENS else ()


class SharedPrefix:
    """Keys and values of the tokens that all prompts of a call begin with.

    Attributes:
        num_tokens: 0 if there are none.
    """

    def __init__(
        self,
        token_ids: tuple[int, ...],
        hook: ControlHook,
        forward: SlotForward,
        device: torch.device,
    ) -> None:
        """Feed nothing yet.

        Args:
            token_ids: The tokens (`shared_tokens`).
            hook: On the blocks; it does nothing while they are fed.
            forward: Runs the model.
            device: Where it is fed.
        """
        self.num_tokens = len(token_ids)
        self._token_ids = token_ids
        self._hook, self._forward, self._device = hook, forward, device
        self._cache: SlotCache | None = None

    def staging(self, num_rows: int, width: int, cost: GenerationCost) -> SlotCache:
        """A fresh cache of ``width`` positions, whose rows all begin with it; the first call feeds it.

        Args:
            num_rows: Of the cache.
            width: Of the contexts that it is to hold.
            cost: Counts the pass.
        """
        staging = SlotCache(num_rows, growth_tokens=width)
        if not self.num_tokens:
            return staging
        if self._cache is None:
            self._cache = self._fed(cost)
        rows = torch.arange(num_rows, device=self._device)
        staging.copy_rows(self._cache, torch.zeros_like(rows), rows, self.num_tokens)
        return staging

    def _fed(self, cost: GenerationCost) -> SlotCache:
        """One row that holds it."""
        length = self.num_tokens
        cache = SlotCache(1, growth_tokens=length)
        token_ids = torch.tensor([self._token_ids], device=self._device)
        positions = torch.arange(length, device=self._device)[None]
        with self._hook.carrying_out(PassPlan()):
            self._forward(cache, token_ids, positions, num_keys=length, columns=positions[:, -1])
        cost.forward_passes += 1
        cost.prefill_passes += 1
        cost.token_forwards += length
        return cache
