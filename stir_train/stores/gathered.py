"""States side by side as the rows of one matrix, to be drawn from again and again.

A fit reads states at random for many epochs. So they are gathered from their files once, for all fits of
a stage: in memory while they are few, else in a scratch file, a row a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.artifacts.atomic import atomic_path
from stir_train.artifacts.tensors import read_rows
from stir_train.stores.states import LazyStates

HELD_BYTES = 1 << 28
"""States are held in memory up to this (256 MiB)."""
_DTYPE = torch.float32


@runtime_checkable
class StateMatrix(Protocol):
    """States ``Float[S V]``: the captured blocks of each side by side, lower ones first."""

    def rows(self, index: Int[Tensor, "B"], columns: slice) -> Float[Tensor, "B W"]:
        """Some columns of some rows, in the order asked for."""
        ...


@dataclass(frozen=True)
class HeldStates:
    """A matrix of states in memory."""

    states: Float[Tensor, "S V"]

    def __len__(self) -> int:
        """Number of states."""
        return len(self.states)

    def rows(self, index: Int[Tensor, "B"], columns: slice) -> Float[Tensor, "B W"]:
        """Some columns of some rows."""
        return self.states[index, columns]


@dataclass(frozen=True)
class ScratchStates:
    """A matrix of states in a file, ``num_columns`` float32 numbers a row."""

    path: Path
    num_rows: int
    num_columns: int

    def __len__(self) -> int:
        """Number of states."""
        return self.num_rows

    def rows(self, index: Int[Tensor, "B"], columns: slice) -> Float[Tensor, "B W"]:
        """Some columns of some rows."""
        return read_rows(self.path, 0, self.num_columns, _DTYPE, index, columns=columns)


class GatheredStates:
    """A matrix of states that grows by what is added; a `StateMatrix`."""

    def __init__(self, directory: Path) -> None:
        """Keep scratch files, where there are many states, in ``directory``."""
        self._directory = directory
        self._parts: list[HeldStates | ScratchStates] = []
        self._held_bytes = 0

    @property
    def num_parts(self) -> int:
        """How often states were added."""
        return len(self._parts)

    def write(self, states: LazyStates) -> None:
        """Write the scratch file that `add` needs for many states; one process does it for all."""
        if self._fits(states):
            return
        with atomic_path(self._next_file()) as temporary, temporary.open("wb") as stream:
            for piece in states.pieces():
                stream.write(piece.numpy().tobytes())

    def add(self, states: LazyStates) -> None:
        """Append states: few are read, each file once; many are in the file that `write` left."""
        num_columns = len(states.blocks) * states.width
        if not self._fits(states):
            self._parts.append(ScratchStates(self._next_file(), len(states), num_columns))
            return
        held = torch.empty(len(states), num_columns, dtype=_DTYPE)
        start = 0
        for piece in states.pieces():
            held[start : start + len(piece)] = piece.flatten(1)
            start += len(piece)
        self._held_bytes += held.nbytes
        self._parts.append(HeldStates(held))

    def rows(self, index: Int[Tensor, "B"], columns: slice) -> Float[Tensor, "B W"]:
        """Some columns of some rows, in the order asked for."""
        ends = torch.tensor([len(part) for part in self._parts]).cumsum(0)
        part_of = torch.searchsorted(ends, index, right=True)
        touched = part_of.unique().tolist()
        starts = [int(end) - len(part) for end, part in zip(ends, self._parts, strict=True)]
        if len(touched) == 1:
            return self._parts[touched[0]].rows(index - starts[touched[0]], columns)
        found: Tensor | None = None
        for number in touched:
            here = (part_of == number).nonzero()[:, 0]
            rows = self._parts[number].rows(index[here] - starts[number], columns)
            if found is None:
                found = rows.new_empty(len(index), rows.shape[1])
            found[here] = rows
        return self._parts[0].rows(index, columns) if found is None else found

    def _fits(self, states: LazyStates) -> bool:
        size = len(states) * len(states.blocks) * states.width * _DTYPE.itemsize
        return self._held_bytes + size <= HELD_BYTES

    def _next_file(self) -> Path:
        return self._directory / f"states-{len(self._parts)}.float32"
