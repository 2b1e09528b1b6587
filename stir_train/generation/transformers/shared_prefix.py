"""What all prompts of a call begin with, a system prompt or worked examples: it is fed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stir_train.generation.backend import GenerationCost, GenerationRequest
from stir_train.generation.control_hook import ControlHook, Edits, PassPlan
from stir_train.generation.controller import Controller
from stir_train.generation.fixed import FixedVector
from stir_train.generation.transformers.slot_cache import SlotCache
from stir_train.generation.transformers.slot_forward import SlotForward

MIN_SHARED_TOKENS = 32
"""Tokens that prompts must have in common to be worth a pass of their own."""


def shared_tokens(
    requests: Sequence[GenerationRequest], controllers: Sequence[Controller]
) -> tuple[int, ...]:
    """The tokens that all prompts begin with; none if they are not worth a pass.

    A prompt's last token is never one of them, since what is decided there may differ. Nothing is shared where a
    controller that may decide differently for each prompt acts at every token.
    """
    prompts = {request.prompt.token_ids for request in requests}
    throughout = [c for c in controllers if c.place == "every_token"]
    if len(prompts) < 2 or not all(isinstance(c, FixedVector) for c in throughout):
        return ()
    first, last = min(prompts), max(prompts)  # what these two begin with, all do
    agree = [one == other for one, other in zip(first, last, strict=False)]
    count = min([*agree, False].index(False), min(map(len, prompts)) - 1)
    return first[:count] if count >= MIN_SHARED_TOKENS else ()


@dataclass(frozen=True)
class Throughout:
    """What is added at every token of a prompt, whichever prompt it is.

    Attributes:
        vectors: Block and ``Float[D]``, in the order in which they are added.
    """

    vectors: tuple[tuple[int, Tensor], ...]

    @cached_property
    def key(self) -> tuple[tuple[int, bytes], ...]:
        """Equal where the same is added."""
        return tuple(
            (block, vector.detach().float().cpu().numpy().tobytes())
            for block, vector in self.vectors
        )

    @staticmethod
    def of(request: GenerationRequest, controllers: Sequence[Controller]) -> Throughout:
        """What a request plans, and, unless it continues a completion, what fixed vectors will add."""
        planned = [(i.block, i.delta) for i in request.planned if i.place == "every_token"]
        fixed = [] if request.prefix_token_ids else controllers
        decided = [
            (c.block, c.strength * c.vector)
            for c in fixed
            if isinstance(c, FixedVector) and c.place == "every_token" and c.strength
        ]
        return Throughout((*planned, *decided))


class SharedPrefix:
    """Keys and values of the tokens that all prompts of a call begin with, under each set of vectors.

    Attributes:
        num_tokens: 0 if there are none.
    """

    def __init__(
        self,
        token_ids: tuple[int, ...],
        controllers: Sequence[Controller],
        hook: ControlHook,
        forward: SlotForward,
        device: torch.device,
    ) -> None:
        """Feed nothing yet.

        Args:
            token_ids: The tokens (`shared_tokens`).
            controllers: Those that are asked at prompts' ends.
            hook: On the blocks.
            forward: Runs the model.
            device: Where it is fed.
        """
        self.num_tokens = len(token_ids)
        self._token_ids, self._controllers = token_ids, controllers
        self._hook, self._forward, self._device = hook, forward, device
        self._caches: dict[tuple[tuple[int, bytes], ...], SlotCache] = {}

    def staging(
        self, requests: Sequence[GenerationRequest], width: int, cost: GenerationCost
    ) -> SlotCache:
        """A fresh cache, whose rows all begin with it; the first call for each set of vectors feeds it.

        Args:
            requests: One a row.
            width: Positions of the cache, of the contexts that it is to hold.
            cost: Counts the passes.
        """
        staging = SlotCache(len(requests), growth_tokens=width)
        if not self.num_tokens:
            return staging
        rows: dict[tuple[tuple[int, bytes], ...], list[int]] = {}
        for row, request in enumerate(requests):
            added = Throughout.of(request, self._controllers)
            if added.key not in self._caches:
                self._caches[added.key] = self._fed(added, cost)
            rows.setdefault(added.key, []).append(row)
        for key, some in rows.items():
            taken = torch.tensor(some, device=self._device)
            staging.copy_rows(self._caches[key], torch.zeros_like(taken), taken, self.num_tokens)
        return staging

    def _fed(self, added: Throughout, cost: GenerationCost) -> SlotCache:
        """One row that holds it."""
        length = self.num_tokens
        cache = SlotCache(1, growth_tokens=length)
        token_ids = torch.tensor([self._token_ids], device=self._device)
        columns = torch.arange(length, device=self._device)
        edits = tuple(
            Edits(block, torch.zeros_like(columns), columns, vector.expand(length, -1))
            for block, vector in added.vectors
        )
        with self._hook.carrying_out(PassPlan(edits=edits)):
            self._forward(cache, token_ids, columns[None], num_keys=length, columns=columns[-1:])
        cost.forward_passes += 1
        cost.prefill_passes += 1
        cost.token_forwards += length
        return cache
