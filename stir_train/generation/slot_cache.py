"""A key-value cache of row slots: each row has its own length, and rows can be copied and freed.

Keys sit at their own position, without padding on the left, so a slot is refilled by writing
over it. What lies past a row's length is stale and is masked, never read.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache

GROWTH_TOKENS = 256


class SlotCache(Cache):
    """Keys and values ``[slot, head, position, head_dim]`` per block, grown as rows lengthen."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(layers=[])
        self.num_slots = num_slots
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self._positions: Tensor | None = None
        self._num_keys = 0

    def begin(self, positions: Int[Tensor, "B T"], num_keys: int) -> None:
        """Announce a pass that writes rows ``0..B-1`` at ``positions``, all below ``num_keys``."""
        self._positions = positions
        self._num_keys = num_keys

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values, and return all that its rows may attend to."""
        assert self._positions is not None, "begin() comes before a forward pass"
        keys, values = self._store(layer_idx, key_states, value_states)
        num_rows = key_states.shape[0]
        rows = torch.arange(num_rows, device=key_states.device)[:, None]
        keys[rows, :, self._positions] = key_states.transpose(1, 2)
        values[rows, :, self._positions] = value_states.transpose(1, 2)
        return keys[:num_rows, :, : self._num_keys], values[:num_rows, :, : self._num_keys]

    def copy_rows(
        self, source: SlotCache, source_rows: Int[Tensor, "R"], rows: Int[Tensor, "R"], length: int
    ) -> None:
        """Copy the first ``length`` positions of rows of another cache (or of this one)."""
        for layer_idx, (keys, values) in source._stores.items():
            mine_keys, mine_values = self._store(layer_idx, keys, values, length)
            mine_keys[rows, :, :length] = keys[source_rows, :, :length]
            mine_values[rows, :, :length] = values[source_rows, :, :length]

    def copy_positions(
        self,
        source: SlotCache,
        source_rows: Int[Tensor, "R"],
        rows: Int[Tensor, "R"],
        positions: Int[Tensor, "R"],
    ) -> None:
        """Copy one position per row from rows of another cache."""
        for layer_idx, (keys, values) in source._stores.items():
            mine_keys, mine_values = self._stores[layer_idx]
            mine_keys[rows, :, positions] = keys[source_rows, :, positions]
            mine_values[rows, :, positions] = values[source_rows, :, positions]

    def fill_stale(self, lengths: Int[Tensor, "B"], value: float) -> None:
        """Overwrite everything past each row's length (tests prove that nothing reads it)."""
        for keys, values in self._stores.values():
            stale = torch.arange(keys.shape[2])[None] >= lengths[:, None].cpu()
            keys.transpose(1, 2)[: len(lengths)][stale] = value
            values.transpose(1, 2)[: len(lengths)][stale] = value

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - transformers' signature
        """Positions before this pass; only asked by models that ignore ``position_ids``."""
        return 0 if self._positions is None else int(self._positions[0, 0])

    def _store(
        self, layer_idx: int, keys: Tensor, values: Tensor, length: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The block's storage, made or grown to hold the pass."""
        needed = max(self._num_keys, length)
        held = self._stores.get(layer_idx)
        if held is not None and held[0].shape[2] >= needed:
            return held
        capacity = -(-needed // GROWTH_TOKENS) * GROWTH_TOKENS
        grown = []
        for i, like in enumerate((keys, values)):
            store = like.new_zeros((self.num_slots, like.shape[1], capacity, like.shape[3]))
            if held is not None:
                store[:, :, : held[i].shape[2]] = held[i]
            grown.append(store)
        self._stores[layer_idx] = (grown[0], grown[1])
        return self._stores[layer_idx]
