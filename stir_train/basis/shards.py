"""Candidates spread over ranks: every rank knows the small columns, each holds some of the keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.distributed.world import World
from stir_train.types.steering import Contrasts, ControlBasis


def is_held(shard: int, world: World) -> bool:
    """Whether this rank holds a shard: they go round."""
    return shard % world.size == world.rank


class SharedEntries:
    """The entries of one block and kind: row ``2c`` is a contrast's correction, ``2c + 1`` its anchor.

    Each shard is a block of rows whoever holds it, so that every row's arithmetic, and with it
    every bit of the selection, is the same for any number of ranks. Of the states a rank keeps the keys
    of its own shards; directions are read again for the entries that are picked.

    Attributes:
        num_rows: Entries on all ranks.
        points, quality: ``[C]``, of every entry.
    """

    def __init__(
        self, shards: Sequence[Contrasts], block: int, *, saves_tokens: bool, world: World
    ) -> None:
        self._shards, self._block, self._world = shards, block, world
        self._saves_tokens = saves_tokens
        self._width = shards[0].width
        kinds = [shard.saves_tokens == saves_tokens for shard in shards]
        self._kinds = kinds
        self.points = torch.cat([s.points[k] for s, k in zip(shards, kinds, strict=True)])
        self.points = self.points.repeat_interleave(2)
        self.quality = torch.cat([s.quality[k] for s, k in zip(shards, kinds, strict=True)])
        self.quality = self.quality.repeat_interleave(2)
        self.num_rows = len(self.points)
        self._contrasts = torch.cat([s.saves_tokens for s in shards]) == saves_tokens
        counts = torch.tensor([2 * int(kind.sum()) for kind in kinds])
        self._starts = torch.cumsum(counts, 0) - counts
        self._ends = self._starts + counts
        self._keys: dict[int, Tensor] = {}
        for number, (shard, kind) in enumerate(zip(shards, kinds, strict=True)):
            if is_held(number, world):
                right, wrong = shard.means(block, kind)
                keys = torch.stack([wrong, right], 1).flatten(0, 1)
                self._keys[number] = torch.nn.functional.normalize(keys, dim=-1)

    def blocks(self) -> Iterable[tuple[int, Float[Tensor, "B D"]]]:
        """The rows held here, a shard at a time."""
        for number, keys in self._keys.items():
            if len(keys):
                yield int(self._starts[number]), keys.double()

    def agree(self, row: int, gain: float) -> tuple[int, float]:
        """The best of every rank's best."""
        offers = self._world.gather(torch.tensor([gain, -float(row)], dtype=torch.double))
        best_gain, negative_row = max(tuple(offer.tolist()) for offer in offers)
        return int(-negative_row), best_gain

    def fetch(self, row: int, value: float) -> tuple[Float[Tensor, "D"], float]:
        """From the rank that holds the row's shard."""
        number = int(torch.searchsorted(self._ends, torch.tensor(row), right=True))
        sent = torch.zeros(1 + self._width, dtype=torch.double)
        if is_held(number, self._world):
            sent[0] = value
            sent[1:] = self._keys[number][row - int(self._starts[number])]
        sent = self._world.broadcast(sent, source=number % self._world.size)
        return sent[1:], float(sent[0])

    def basis(self, rows: Int[Tensor, "K"]) -> ControlBasis:
        """The entries in ``rows`` as a basis, on every rank. Collective."""
        found = torch.zeros(len(rows), 2, self._width)
        for number, keys in self._keys.items():
            start, end = int(self._starts[number]), int(self._ends[number])
            here = (rows >= start) & (rows < end)
            found[here, 0] = keys[rows[here] - start]
            found[here, 1] = self._directions(number, rows[here] - start)
        found = self._world.sum(found)  # every row is nonzero on one rank only
        contrasts = self._contrasts.nonzero()[:, 0].repeat_interleave(2)
        return ControlBasis(
            keys=found[:, 0],
            directions=found[:, 1],
            blocks=torch.full((len(rows),), self._block),
            points=self.points[rows],
            quality=self.quality[rows],
            is_anchor=rows % 2 == 1,
            saves_tokens=torch.full((len(rows),), self._saves_tokens),
            contrast=contrasts[rows],
        )

    def _directions(self, number: int, rows: Int[Tensor, "R"]) -> Float[Tensor, "R D"]:
        """Of some entries of a shard: better minus worse, and nothing for an anchor."""
        contrasts = self._kinds[number].nonzero()[:, 0][rows // 2]
        right, wrong = self._shards[number].means(self._block, contrasts)
        return torch.where((rows % 2 == 1)[:, None], torch.zeros(()), right - wrong)
