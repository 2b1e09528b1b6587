"""Residual states of a stage's rollouts at their control points, read by block and by row.

A chunk's file ``states-00000.safetensors`` holds one tensor a captured block, ``states.block_b Float[S D]``, and four
columns ``Int[S]``: the state's rollout (its row in the chunk's rollout table), control point, token
index and token id. Labels are read without the states, and a block without the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import TensorFile, save_tensors
from stir_train.errors import ArtifactError
from stir_train.stores.rollouts import RolloutStore, chunk_file, rollouts_file
from stir_train.types.rollout import GradedRollout, Rollout
from stir_train.types.trajectory import CapturedStates, StateLabel


def states_file(name: str, number: int) -> str:
    """Name of a chunk's states."""
    return chunk_file("states", name, number, ".safetensors")


def _block(block: int) -> str:
    return f"states.block_{block}"


@dataclass(frozen=True)
class StateLabels:
    """Where each state of a set comes from, as columns.

    Attributes:
        rollout: ``Int[S]``, its row among the set's rollouts.
        point: ``Int[S]``, 1-based control point.
        token_index: ``Int[S]``, of the control-point token in the completion.
        token_id: ``Int[S]``, that token.
    """

    rollout: Int[Tensor, "S"]
    point: Int[Tensor, "S"]
    token_index: Int[Tensor, "S"]
    token_id: Int[Tensor, "S"]

    def __len__(self) -> int:
        """Number of states."""
        return len(self.rollout)

    @staticmethod
    def of(labels: Sequence[StateLabel], rollouts: Sequence[Rollout]) -> StateLabels:
        """The columns of labels of some rollouts' states."""
        index = {(r.prompt_id, r.sample): i for i, r in enumerate(rollouts)}
        columns = (
            [index[label.prompt_id, label.sample] for label in labels],
            [label.point for label in labels],
            [label.token_index for label in labels],
            [label.token_id for label in labels],
        )
        return StateLabels(*(torch.tensor(values, dtype=torch.long) for values in columns))

    def select(self, index: Tensor) -> StateLabels:
        """The labels at ``index`` (integers or a mask)."""
        return StateLabels(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def shifted(self, num_rollouts: int) -> StateLabels:
        """The same where so many other rollouts come first."""
        return StateLabels(self.rollout + num_rollouts, self.point, self.token_index, self.token_id)

    @staticmethod
    def concatenate(parts: Sequence[StateLabels]) -> StateLabels:
        """Join labels, in order."""
        names = [field.name for field in fields(StateLabels)]
        return StateLabels(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        )


@dataclass(frozen=True)
class ChosenRows:
    """Some states of one file: ``Int[R]``, rows in order."""

    file: TensorFile
    rows: Int[Tensor, "R"]


class LazyStates:
    """Chosen states of many files as one ``Float[S L D]`` that stays on disk.

    Attributes:
        parts: What is chosen of each file, in order.
        blocks: The captured blocks, ascending.
        width: ``D``.
    """

    def __init__(self, parts: Sequence[ChosenRows]) -> None:
        self.parts = tuple(parts)
        self.blocks = _blocks_of(parts[0].file)
        self.width = parts[0].file.shape(_block(self.blocks[0]))[1]
        self._ends = torch.tensor([len(part.rows) for part in parts]).cumsum(0)

    def __len__(self) -> int:
        """Number of states."""
        return int(self._ends[-1])

    def gather(
        self, index: Int[Tensor, "B"], blocks: Sequence[int] | None = None
    ) -> Float[Tensor, "B L D"]:
        """States at ``index``, of all or some blocks, in the order asked for."""
        blocks = self.blocks if blocks is None else blocks
        found = torch.empty(len(index), len(blocks), self.width)
        part_of = torch.searchsorted(self._ends, index, right=True)
        for number in part_of.unique().tolist():
            part = self.parts[number]
            here = (part_of == number).nonzero()[:, 0]
            rows = part.rows[index[here] - (int(self._ends[number]) - len(part.rows))]
            for layer, block in enumerate(blocks):
                found[here, layer] = part.file.rows(_block(block), rows)
        return found

    def pieces(self, blocks: Sequence[int] | None = None) -> Iterator[Float[Tensor, "R L D"]]:
        """All states in order, a file at a time: each is read once."""
        blocks = self.blocks if blocks is None else blocks
        for part in self.parts:
            yield torch.stack([part.file.rows(_block(b), part.rows) for b in blocks], dim=1)

    @staticmethod
    def concatenate(states: Sequence[LazyStates]) -> LazyStates:
        """Join states of the same blocks, in order."""
        return LazyStates([part for some in states for part in some.parts])


class StateStore:
    """The captured states of one stage directory, finished or still being made."""

    def __init__(self, stage: StageDir) -> None:
        self.stage = stage
        self._rollouts = RolloutStore(stage)

    def blocks(self, name: str = "") -> tuple[int, ...]:
        """The captured blocks of a set, 0-based, ascending."""
        self._rollouts.num_chunks(name)
        return _blocks_of(self._open(name, 0))

    def labels(self, name: str = "") -> StateLabels:
        """Labels of every state of a set, in order; the states stay on disk."""
        parts, num_before = [], 0
        for number in range(self._rollouts.num_chunks(name)):
            labels, num_rollouts = self._labels(name, number)
            parts.append(labels.shifted(num_before))
            num_before += num_rollouts
        return StateLabels.concatenate(parts)

    def lazy(self, name: str = "", where: Shaped[Tensor, "S"] | None = None) -> LazyStates:
        """The states of a set as one matrix on disk.

        Args:
            name: The set.
            where: ``Bool[S]``, the states that are chosen; None takes all.
        """
        files = [self._open(name, number) for number in range(self._rollouts.num_chunks(name))]
        rows = [torch.arange(file.shape("rollout")[0]) for file in files]
        if where is not None:
            parts = where.split([len(part) for part in rows])
            rows = [part[kept] for part, kept in zip(rows, parts, strict=True)]
        return LazyStates([ChosenRows(*part) for part in zip(files, rows, strict=True)])

    def rows(
        self,
        name: str = "",
        *,
        blocks: Sequence[int] | None = None,
        where: Shaped[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "R L D"]:
        """Some states of some blocks, and nothing else is read.

        Args:
            name: The set.
            blocks: Which; None takes every captured block.
            where: ``Bool[S]`` mask or ``Int[R]`` rows of the set's states; None takes all.
        """
        lazy = self.lazy(name)
        if where is None:
            where = torch.arange(len(lazy))
        return lazy.gather(where.nonzero()[:, 0] if where.dtype == torch.bool else where, blocks)

    def read_chunk(
        self, name: str, number: int, rollouts: Sequence[GradedRollout]
    ) -> CapturedStates:
        """One chunk's states with their labels; ``rollouts`` are the chunk's."""
        file = self._open(name, number)
        labels, _ = self._labels(name, number)
        blocks = _blocks_of(file)
        owners = [rollouts[owner].rollout for owner in labels.rollout.tolist()]
        columns = (labels.point.tolist(), labels.token_index.tolist(), labels.token_id.tolist())
        return CapturedStates(
            tuple(
                StateLabel(owner.prompt_id, owner.sample, *where)
                for owner, *where in zip(owners, *columns, strict=True)
            ),
            blocks,
            torch.stack([file.tensor(_block(block)) for block in blocks], dim=1),
        )

    def chunks(self, name: str = "") -> Iterator[tuple[list[GradedRollout], CapturedStates]]:
        """The rollouts of a set with their states, chunk by chunk."""
        for number, rollouts in enumerate(self._rollouts.iterate(name)):
            yield rollouts, self.read_chunk(name, number, rollouts)

    def _open(self, name: str, number: int) -> TensorFile:
        return TensorFile(self.stage.verified(states_file(name, number)))

    def _labels(self, name: str, number: int) -> tuple[StateLabels, int]:
        """A chunk's labels, and how many rollouts it has."""
        file = self._open(name, number)
        labels = StateLabels(
            *(file.tensor(column) for column in ("rollout", "point", "token_index", "token_id"))
        )
        num_rollouts = _num_rows(self.stage.verified(rollouts_file(name, number)))
        if len(labels) and int(labels.rollout.max()) >= num_rollouts:
            raise ArtifactError(
                f"{file.path}: states of rollout {int(labels.rollout.max())}, the chunk has "
                f"{num_rollouts}; they do not belong together, remake the stage with --redo"
            )
        return labels, num_rollouts


def save_states(
    stage: StageDir,
    place: tuple[str, int],
    rollouts: Sequence[Rollout],
    captured: CapturedStates,
    *,
    block_convention: str,
) -> None:
    """Write a chunk's captured states.

    Args:
        stage: Takes the file.
        place: The set and the chunk's number.
        rollouts: Of the chunk, in the order of its table.
        captured: Their states.
        block_convention: What a block's state is, for whoever reads the file elsewhere.
    """
    save_tensors(
        stage,
        states_file(*place),
        {_block(block): captured.at_block(block) for block in captured.blocks}
        | vars(StateLabels.of(captured.labels, rollouts)),
        {
            "blocks": ",".join(map(str, captured.blocks)),
            "block_convention": block_convention,
        },
    )


def _blocks_of(file: TensorFile) -> tuple[int, ...]:
    return tuple(int(block) for block in file.metadata["blocks"].split(","))


def _num_rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)
