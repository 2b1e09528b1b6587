"""A reward-gradient direction for every entry of a control basis: of the states that are nearest to it.

The selected keys part the recorded control points into cells. With ``x_p`` the gradients of problem ``p``
in a cell, weighted by advantage and summed, and ``n`` such problems, the cell's direction is their mean
``m_c``, shrunk towards the mean ``m`` over all cells of the block as far as noise explains that they differ
(positive-part James and Stein)::

    r_c = max(0, 1 - var(m_c) / |m_c - m|^2),    d_c = m + r_c (m_c - m)

``var(m_c)`` is estimated from the spread between problems: samples of one problem are not independent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.directions.advantages import Advantages
from stir_train.errors import StageError
from stir_train.types.directions import PointGradients
from stir_train.types.reports import CellSummary
from stir_train.types.steering import ControlBasis


@dataclass(frozen=True)
class _Cells:
    """Running sums of one block's entries, ``E`` of them, over problems.

    Attributes:
        rows: ``Int[E]``, the entries' rows in the basis.
        keys: ``Float[E D]``, unit norm.
        points: ``Int[E]``, the control point of each.
        counts: ``Int[E]``, problems with a state in the cell.
        sums: ``Float[E D]``, of ``x_p``.
        squares: ``Float[E]``, of ``|x_p|^2``.
    """

    rows: Int[Tensor, "E"]
    keys: Float[Tensor, "E D"]
    points: Int[Tensor, "E"]
    counts: Int[Tensor, "E"]
    sums: Float[Tensor, "E D"]
    squares: Float[Tensor, "E"]

    def nearest(self, states: Float[Tensor, "R D"], points: Int[Tensor, "R"]) -> Int[Tensor, "R"]:
        """The cell of each state, among those of its control point; -1 where there is none."""
        cosines = torch.nn.functional.normalize(states.double(), dim=-1) @ self.keys.T
        cosines = cosines.masked_fill(points[:, None] != self.points, -torch.inf)
        best, cell = cosines.max(dim=1)
        return torch.where(best.isfinite(), cell, -1)

    def shrunken(self) -> tuple[Float[Tensor, "E D"], Float[Tensor, "E"]]:
        """Directions of any norm, and how much of each is the cell's own, from 0 to 1."""
        counts = self.counts.double()
        pooled = self.sums.sum(0) / counts.sum().clamp_min(1)
        means = self.sums / counts.clamp_min(1)[:, None]
        spread = self.squares / counts.clamp_min(1) - means.square().sum(-1)
        # One problem says nothing of the spread between problems.
        variance = torch.where(self.counts > 1, spread / (counts - 1), torch.inf)
        distance = (means - pooled).square().sum(-1)
        own = (1 - variance / distance).nan_to_num(nan=0.0).clamp(0, 1)
        return pooled + own[:, None] * (means - pooled), own


class CellSums:
    """Adds up recorded gradients by the basis entry whose key is nearest, a chunk of rollouts at a time.

    Args:
        basis: Anchors get nothing; every other entry has a cell.
    """

    def __init__(self, basis: ControlBasis) -> None:
        self._basis = basis
        self._cells = {int(block): _empty(basis, int(block)) for block in basis.blocks.unique()}

    def add(self, points: PointGradients, blocks: Sequence[int], advantages: Advantages) -> None:
        """Add some rollouts' gradients, all of a problem's together.

        Args:
            points: States and gradients; the prompt's end is no control point and is left out.
            blocks: The differentiated blocks, in the order of the tensors.
            advantages: Of the same run.

        Raises:
            StageError: If a block of the basis was not differentiated.
        """
        weights = torch.tensor(
            advantages.of(
                [label.prompt_id for label in points.labels],
                [label.sample for label in points.labels],
            ),
            dtype=torch.double,
        )
        numbers = torch.tensor([label.point for label in points.labels], dtype=torch.long)
        kept = ((numbers > 0) & (weights != 0)).nonzero()[:, 0]
        problem_ids = [points.labels[row].prompt_id for row in kept.tolist()]
        order = {problem_id: n for n, problem_id in enumerate(dict.fromkeys(problem_ids))}
        problems = torch.tensor([order[problem_id] for problem_id in problem_ids], dtype=torch.long)
        for block, cells in self._cells.items():
            if block not in blocks:
                raise StageError(
                    f"the basis has entries of block {block}, and directions differentiated blocks "
                    f"{', '.join(map(str, blocks))}; run stage directions again"
                )
            layer = list(blocks).index(block)
            cell = cells.nearest(points.states[kept, layer], numbers[kept])
            values = weights[kept, None] * points.at_point[kept, layer].double()
            _add_by_problem(cells, cell, problems, values)

    def directions(self) -> tuple[ControlBasis, tuple[CellSummary, ...]]:
        """The basis with these directions, and a summary a block.

        Every direction has the median norm of the block's differences of means, so that a strength
        means the same for either kind.

        Raises:
            StageError: If a block has no gradient at any control point.
        """
        directions = self._basis.directions.clone()
        summaries = []
        for block, cells in sorted(self._cells.items()):
            found, own = cells.shrunken()
            if not bool(cells.sums.any()):
                raise StageError(
                    f"block {block}: no recorded control point of a problem with unequal rewards has a "
                    "gradient, so there is no direction to steer in; use basis.directions=difference, or "
                    "problems that the model solves sometimes"
                )
            differences = directions[cells.rows]
            norm = differences.norm(dim=-1).median()
            made = (norm * torch.nn.functional.normalize(found, dim=-1)).float()
            cosine = torch.nn.functional.cosine_similarity(made, differences, dim=-1)
            summaries.append(
                CellSummary(
                    block=block,
                    num_entries=len(own),
                    num_own=int((own > 0).sum()),
                    own_mean=float(own.mean()),
                    problems_median=float(cells.counts.double().median()),
                    difference_cosine=float(cosine.mean()),
                )
            )
            directions[cells.rows] = made
        return dataclasses.replace(self._basis, directions=directions), tuple(summaries)


def _empty(basis: ControlBasis, block: int) -> _Cells:
    rows = ((basis.blocks == block) & ~basis.is_anchor).nonzero()[:, 0]
    keys = basis.keys[rows].double()
    return _Cells(
        rows=rows,
        keys=keys,
        points=basis.points[rows],
        counts=torch.zeros(len(rows), dtype=torch.long),
        sums=torch.zeros_like(keys),
        squares=torch.zeros(len(rows), dtype=torch.double),
    )


def _add_by_problem(
    cells: _Cells,
    cell: Int[Tensor, "R"],
    problems: Int[Tensor, "R"],
    values: Float[Tensor, "R D"],
) -> None:
    """Add to the sums in place, in the order of the problems: the same bytes whatever the machine."""
    for problem in problems.unique().tolist():
        mine = problems == problem
        for number in cell[mine].unique().tolist():
            if number >= 0:
                total = values[mine & (cell == number)].sum(0)
                cells.counts[number] += 1
                cells.sums[number] += total
                cells.squares[number] += total.square().sum()
