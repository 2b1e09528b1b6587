"""Greedy maximisation of ``sum log(1 + quality) + diversity * logdet(G_S + jitter I)``.

``G`` is the Gram matrix of the keys and is never formed. With ``P = K_S^T (G_S + jitter I)^-1 K_S``
the gain of row ``i`` is ``log(1 + quality_i) + diversity * log d_i``, where
``d_i = |k_i|^2 + jitter - k_i^T P k_i``. Picking row ``j`` adds ``u u^T`` to ``P``, with
``u = (k_j - P k_j) / sqrt(d_j)``, so that every ``d_i`` drops by ``(k_i . u)^2``: one
matrix-vector product a pick, ``O(C K D)`` in all, and memory for the keys and two vectors. The
products run in the keys' own dtype: float32 is fast, float64 is exact where the picks exhaust the
rank and ``d`` falls to the jitter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class KeyRows(Protocol):
    """Keys ``Float[C D]``: in memory, streamed from disk, or spread over the ranks of a launch."""

    @property
    def num_rows(self) -> int:
        """Number of candidates, those that other ranks hold included."""
        ...

    def blocks(self) -> Iterable[tuple[int, Float[Tensor, "B D"]]]:
        """Yield (first row, rows) blocks that cover every row held here once, in order."""
        ...

    def agree(self, row: int, gain: float) -> tuple[int, float]:
        """The row of largest gain among every holder's best, the lowest such row. Collective."""
        ...

    def fetch(self, row: int, value: float) -> tuple[Float[Tensor, "D"], float]:
        """A row's key and the value that its holder passed for it. Collective."""
        ...


@dataclass(frozen=True)
class KeysInMemory:
    """Keys held as one tensor ``Float[C D]``."""

    keys: Float[Tensor, "C D"]

    @property
    def num_rows(self) -> int:
        """Number of candidates."""
        return len(self.keys)

    def blocks(self) -> Iterable[tuple[int, Float[Tensor, "B D"]]]:
        """All rows as one block."""
        yield 0, self.keys

    def agree(self, row: int, gain: float) -> tuple[int, float]:
        """This process holds every row."""
        return row, gain

    def fetch(self, row: int, value: float) -> tuple[Float[Tensor, "D"], float]:
        """This process holds every row."""
        return self.keys[row], value


@dataclass(frozen=True)
class Selection:
    """The picks in order, and the objective after each.

    Attributes:
        picks: Row indices.
        objective: Objective value after each pick.
        logdet: Its log-determinant part after each pick (unweighted).
    """

    picks: tuple[int, ...]
    objective: tuple[float, ...]
    logdet: tuple[float, ...]


def greedy_select(
    keys: KeyRows,
    quality: Float[Tensor, "C"],
    size: int,
    *,
    diversity: float,
    jitter: float,
    forced: Sequence[int] = (),
    partner: Sequence[int] | None = None,
) -> Selection:
    """Pick up to ``size`` rows greedily; ties go to the lower index.

    Args:
        keys: Candidate keys.
        quality: Non-negative quality of each.
        size: Rows to pick, forced ones and partners included.
        diversity: Weight of the log-determinant.
        jitter: Added to the Gram diagonal; keeps duplicates finite.
        forced: Rows picked first, in this order; the greedy goes on from them.
        partner: ``partner[i]`` is picked right after ``i`` (-1: none), so that pairs stay whole.
            A row with a partner is not started when only one place is left.
    """
    state = _State(keys, quality, diversity, jitter)
    size = min(size, keys.num_rows)
    queue = list(forced)
    while len(state.picks) < size:
        room = size - len(state.picks)
        best = queue.pop(0) if queue else state.best(partner if room == 1 else None)
        if best is None:
            break
        if best in state.picked:
            continue
        state.pick(best)
        mate = -1 if partner is None else partner[best]
        if mate >= 0 and mate not in state.picked and len(state.picks) < size:
            state.pick(mate)
    return Selection(tuple(state.picks), tuple(state.objective), tuple(state.logdet))


class _State:
    """Conditional variances ``d`` and the rows of ``P``'s factor, after the picks so far."""

    def __init__(
        self, keys: KeyRows, quality: Float[Tensor, "C"], diversity: float, jitter: float
    ) -> None:
        self.keys, self.diversity = keys, diversity
        self.log_quality = torch.log1p(quality.double())
        self.variance = torch.ones(keys.num_rows, dtype=torch.double)
        self.elsewhere = torch.ones(keys.num_rows, dtype=torch.bool)
        for start, block in keys.blocks():
            self.variance[start : start + len(block)] = block.double().square().sum(1) + jitter
            self.elsewhere[start : start + len(block)] = False
        self.factor: list[Tensor] = []
        self.picks: list[int] = []
        self.picked: set[int] = set()
        self.objective: list[float] = []
        self.logdet: list[float] = []

    def best(self, partner: Sequence[int] | None) -> int | None:
        """The row of largest gain; with ``partner``, only among rows whose mate is not missing."""
        gains = self.log_quality + self.diversity * self.variance.log()
        gains[self.picks] = -torch.inf
        gains[self.elsewhere] = -torch.inf
        if partner is not None:
            lone = [i for i, p in enumerate(partner) if p >= 0 and p not in self.picked]
            gains[lone] = -torch.inf
        top = gains.max()
        row, gain = self.keys.agree(int((gains == top).nonzero()[0, 0]), float(top))
        return None if gain == -math.inf else row

    def pick(self, index: int) -> None:
        """Add a row and update every conditional variance."""
        key, variance = self.keys.fetch(index, float(self.variance[index]))
        key = key.double()
        direction = key.clone()
        for u in self.factor:
            direction -= (u @ key) * u
        direction /= math.sqrt(variance)
        self.factor.append(direction)
        for start, block in self.keys.blocks():
            projection = block @ direction.to(block.dtype)
            self.variance[start : start + len(block)] -= projection.double().square()
        # Rounding can leave a duplicate's variance below the jitter's square root of precision.
        self.variance.clamp_min_(torch.finfo(torch.double).tiny)
        self.picks.append(index)
        self.picked.add(index)
        logdet = (self.logdet[-1] if self.logdet else 0.0) + math.log(variance)
        quality = float(self.log_quality[self.picks].sum())
        self.logdet.append(logdet)
        self.objective.append(quality + self.diversity * logdet)
