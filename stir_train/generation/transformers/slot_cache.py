"""A key-value cache of row slots: each row has its own length, and rows can be copied and freed.

Keys sit at their own position, without padding on the left, so a slot is refilled by writing
over it. A block's rows live where the block does: a model may be spread over devices. What lies past a row's length is stale and is masked, never read.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache

GROWTH_TOKENS = 256


class SlotCache(Cache):
    """Keys and values ``[slot, head, position, head_dim]`` per block, grown as rows lengthen.

    Head before position: attention reads far more than a pass writes.
    """

    def __init__(self, num_slots: int, *, growth_tokens: int = GROWTH_TOKENS) -> None:
        """Make room for ``num_slots`` rows; capacity grows by multiples of ``growth_tokens``."""
        super().__init__(layers=[])
        self.num_slots = num_slots
        self._growth_tokens = growth_tokens
        self._capacity = 0
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self._positions: Tensor | None = None
        self._written: dict[tuple[int, torch.device], Tensor] = {}
        self._num_keys = 0

    def begin(self, positions: Int[Tensor, "B T"], num_keys: int) -> None:
        """Announce a pass that writes rows ``0..B-1`` at ``positions``, all below ``num_keys``."""
        self._reserve(num_keys)
        self._positions = positions
        self._written = {}
        self._num_keys = num_keys

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values, and return all that its rows may attend to."""
        if layer_idx not in self._stores:
            self._stores[layer_idx] = (self._empty(key_states), self._empty(value_states))
        num_rows = key_states.shape[0]
        held = []
        for store, states in zip(self._stores[layer_idx], (key_states, value_states), strict=True):
            written = self._written_rows(states.shape[1], states.device)
            store.flatten(0, 2).index_copy_(0, written, states.flatten(0, 2))
            held.append(store[:num_rows, :, : self._num_keys])
        return held[0], held[1]

    def copy_rows(
        self, source: SlotCache, source_rows: Int[Tensor, "R"], rows: Int[Tensor, "R"], length: int
    ) -> None:
        """Copy the first ``length`` positions of rows of another cache (or of this one)."""
        self._reserve(length)
        for layer_idx, stores in source._stores.items():
            if layer_idx not in self._stores:
                self._stores[layer_idx] = (self._empty(stores[0]), self._empty(stores[1]))
            for mine, theirs in zip(self._stores[layer_idx], stores, strict=True):
                to, taken = rows.to(mine.device), source_rows.to(mine.device)
                mine[to, :, :length] = theirs[taken, :, :length]

    def copy_positions(
        self,
        source: SlotCache,
        source_rows: Int[Tensor, "R"],
        rows: Int[Tensor, "R"],
        positions: Int[Tensor, "R"],
    ) -> None:
        """Copy one position per row from rows of another cache."""
        for layer_idx, stores in source._stores.items():
            for mine, theirs in zip(self._stores[layer_idx], stores, strict=True):
                to, taken = rows.to(mine.device), source_rows.to(mine.device)
                at = positions.to(mine.device)
                mine[to, :, at] = theirs[taken, :, at]

    def fill_stale(self, lengths: Int[Tensor, "B"], value: float) -> None:
        """Overwrite everything past each row's length (tests prove that nothing reads it)."""
        stale = torch.arange(self._capacity)[None] >= lengths[:, None].cpu()
        for stores in self._stores.values():
            for store in stores:
                store.transpose(1, 2)[: len(lengths)][stale] = value

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - transformers' signature
        """Positions before this pass; only asked by models that ignore ``position_ids``."""
        return 0 if self._positions is None else int(self._positions[0, 0])

    def get_query_offset(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Position of the first query in a pass without a mask: such passes start at 0."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:  # noqa: ARG002
        """Keys and their offset, asked in a pass without a mask: as many keys as queries."""
        return query_length, 0

    def _written_rows(self, num_heads: int, device: torch.device) -> Int[Tensor, "W"]:
        """Where the pass's states ``[B, H, T]`` go among all ``[slot, head, position]``."""
        if (num_heads, device) not in self._written:
            assert self._positions is not None, "begin() comes before a forward pass"
            positions = self._positions[:, None].to(device)
            slots = torch.arange(len(positions), device=device)[:, None, None]
            heads = torch.arange(num_heads, device=device)[None, :, None]
            rows = (slots * num_heads + heads) * self._capacity + positions
            self._written[num_heads, device] = rows.flatten()
        return self._written[num_heads, device]

    def _empty(self, like: Tensor) -> Tensor:
        """Zeros, not garbage: masked positions still enter products, where NaN would spread."""
        return like.new_zeros((self.num_slots, like.shape[1], self._capacity, like.shape[-1]))

    def _reserve(self, num_keys: int) -> None:
        """Make room for ``num_keys`` positions in every slot."""
        if num_keys <= self._capacity:
            return
        grown = -(-num_keys // self._growth_tokens) * self._growth_tokens
        for layer_idx, stores in self._stores.items():
            wider = [
                torch.nn.functional.pad(store, (0, 0, 0, grown - self._capacity))
                for store in stores
            ]
            self._stores[layer_idx] = (wider[0], wider[1])
        self._capacity = grown
