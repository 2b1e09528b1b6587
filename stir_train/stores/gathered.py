"""States side by side as the rows of one matrix, to be drawn from again and again.

A fit reads states at random for many epochs. So they are gathered from their files once, for all fits of
a stage: in memory where they are few, else in one scratch file, a row a state.
"""

from __future__ import annotations

import math
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
"""States that take less than this (256 MiB) are held in memory."""
_FLOAT = torch.float32


@runtime_checkable
class StateMatrix(Protocol):
    """States ``Float[S V]``: the captured blocks of each side by side, lower ones first."""

    def rows(self, index: Int[Tensor, "B"], width: int) -> Float[Tensor, "B W"]:
        """The first ``width`` columns of some rows, in the order asked for."""
        ...


@dataclass(frozen=True)
class HeldStates:
    """A matrix of states in memory."""

    states: Float[Tensor, "S V"]

    def rows(self, index: Int[Tensor, "B"], width: int) -> Float[Tensor, "B W"]:
        """The first ``width`` columns of some rows."""
        return self.states[index, :width]


@dataclass(frozen=True)
class ScratchStates:
    """A matrix of states in a file that `write_states` made, ``num_columns`` numbers a row."""

    path: Path
    num_columns: int

    def rows(self, index: Int[Tensor, "B"], width: int) -> Float[Tensor, "B W"]:
        """The first ``width`` columns of some rows."""
        return read_rows(self.path, 0, self.num_columns, _FLOAT, index, num_read=width)


def fits_in_memory(states: LazyStates) -> bool:
    """Whether states are few enough to be held."""
    return len(states) * len(states.blocks) * states.width * _FLOAT.itemsize <= HELD_BYTES


def hold_states(states: LazyStates) -> HeldStates:
    """Read states into memory; every file is read once."""
    held = torch.empty(len(states), len(states.blocks) * states.width)
    start = 0
    for piece in states.pieces():
        held[start : start + len(piece)] = piece.flatten(1)
        start += len(piece)
    return HeldStates(held)


def write_states(states: LazyStates, path: Path) -> None:
    """Copy states to a scratch file, row after row; every file is read once."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        for piece in states.pieces():
            stream.write(piece.numpy().tobytes())


def open_written(states: LazyStates, path: Path) -> ScratchStates:
    """The matrix that `write_states` made of the same states."""
    return ScratchStates(path, math.prod((len(states.blocks), states.width)))
