"""Previews: fork rows of the cache at a control point, decode a little under each candidate.

The control-point token is fed again in every fork, with that fork's impulse, so nothing before
it is computed twice. The forks are dropped; only their tokens' log-probabilities are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.generation.backend import GenerationCost
from stir_train.generation.control_hook import ControlHook, Edits, PassPlan
from stir_train.generation.controller import Proposal
from stir_train.generation.transformers.slot_cache import SlotCache
from stir_train.generation.transformers.slot_forward import SlotForward


@dataclass(frozen=True)
class ForkPoint:
    """Rows of the main cache at a control point.

    Attributes:
        slots: ``Int[R]``, rows of the main cache.
        tokens: ``Int[R]``, the control-point token of each.
        positions: ``Int[R]``, where it was fed.
        num_keys: One more than the largest position.
    """

    slots: Int[Tensor, "R"]
    tokens: Int[Tensor, "R"]
    positions: Int[Tensor, "R"]
    num_keys: int

    def select(self, index: Tensor) -> ForkPoint:
        """Some of the rows (repeats allowed)."""
        return ForkPoint(
            self.slots[index], self.tokens[index], self.positions[index], self.num_keys
        )


class Previewer:
    """Runs previews and commits on forks of a slot cache."""

    def __init__(
        self,
        forward: SlotForward,
        hook: ControlHook,
        *,
        block: int,
        num_tokens: int,
        stop_token_ids: Sequence[int],
        max_rows: int,
    ) -> None:
        self._forward = forward
        self._hook = hook
        self._block = block
        self._num_tokens = num_tokens
        self._stop = torch.tensor(list(stop_token_ids), dtype=torch.long)
        self._max_rows = max_rows

    def gains(
        self, cache: SlotCache, at: ForkPoint, proposal: Proposal, cost: GenerationCost
    ) -> tuple[Float[Tensor, "R L"], Int[Tensor, "R"]]:
        """Mean token log-probability of each candidate's preview minus that of the null's.

        Returns:
            Gains, ``-inf`` where there is no candidate, and preview tokens decoded per row.
        """
        num_rows, num_candidates = proposal.valid.shape
        gains = torch.full((num_rows, num_candidates), -torch.inf, device=at.slots.device)
        spent = torch.zeros(num_rows, dtype=torch.long, device=at.slots.device)
        previewed = proposal.valid.any(1).nonzero()[:, 0]
        if not len(previewed):
            return gains, spent
        # Column 0 is the null preview: the same fork without an impulse.
        zero = torch.zeros_like(proposal.previews[:, :1])
        deltas = torch.cat([zero, proposal.previews], 1)
        wanted = torch.cat([torch.ones_like(proposal.valid[:, :1]), proposal.valid], 1)
        per_fork = max(1, self._max_rows // (num_candidates + 1))
        for part in previewed.split(per_fork):
            parent, column = wanted[part].nonzero(as_tuple=True)
            parents = part[parent]
            means, tokens = self._preview(cache, at.select(parents), deltas[parents, column], cost)
            table = torch.full((len(part), num_candidates + 1), -torch.inf, device=means.device)
            table[parent, column] = means
            gains[part] = table[:, 1:] - table[:, :1]
            spent.index_add_(0, parents, tokens)
        return gains, spent

    def commit(
        self, cache: SlotCache, at: ForkPoint, deltas: Float[Tensor, "R D"], cost: GenerationCost
    ) -> Float[Tensor, "R V"]:
        """Feed the control-point token again with the chosen impulse; keep its keys and values."""
        fork = self._fork(cache, at)
        logits = self._feed(fork, at, deltas, cost)
        rows = torch.arange(len(at.slots), device=at.slots.device)
        cache.copy_positions(fork, rows, at.slots, at.positions)
        return logits

    def _preview(
        self, cache: SlotCache, at: ForkPoint, deltas: Float[Tensor, "F D"], cost: GenerationCost
    ) -> tuple[Float[Tensor, "F"], Int[Tensor, "F"]]:
        fork = self._fork(cache, at)
        logits = self._feed(fork, at, deltas, cost)
        total = torch.zeros(len(deltas), device=deltas.device)
        count = torch.zeros(len(deltas), dtype=torch.long, device=deltas.device)
        alive: Bool[Tensor, "F"] = torch.ones_like(count, dtype=torch.bool)
        stop = self._stop.to(deltas.device)
        for step in range(1, self._num_tokens + 1):
            logprobs = logits.float().log_softmax(-1)
            best, tokens = logprobs.max(-1)
            total += best * alive
            count += alive
            alive = alive & ~torch.isin(tokens, stop)
            if step == self._num_tokens or not bool(alive.any()):
                break
            logits = self._forward(
                fork,
                tokens[:, None],
                (at.positions + step)[:, None],
                num_keys=at.num_keys + step,
            )
            _count_preview(cost, len(deltas))
        return total / count, count

    def _fork(self, cache: SlotCache, at: ForkPoint) -> SlotCache:
        fork = SlotCache(len(at.slots), growth_tokens=self._num_tokens)
        rows = torch.arange(len(at.slots), device=at.slots.device)
        fork.copy_rows(cache, at.slots, rows, at.num_keys)
        return fork

    def _feed(
        self, fork: SlotCache, at: ForkPoint, deltas: Float[Tensor, "F D"], cost: GenerationCost
    ) -> Float[Tensor, "F V"]:
        rows = torch.arange(len(deltas), device=deltas.device)
        edit = Edits(self._block, rows, torch.zeros_like(rows), deltas)
        with self._hook.carrying_out(PassPlan(edits=(edit,))):
            logits = self._forward(
                fork, at.tokens[:, None], at.positions[:, None], num_keys=at.num_keys
            )
        _count_preview(cost, len(deltas))
        return logits


def _count_preview(cost: GenerationCost, num_rows: int) -> None:
    cost.forward_passes += 1
    cost.preview_passes += 1
    cost.token_forwards += num_rows
