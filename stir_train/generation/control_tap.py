"""What happens at control points inside a forward pass: capture states, decide, inject."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stir_train.generation.backend import ControlBatch, Controller, ImpulseBatch
from stir_train.models.hooks import block_hooks


@dataclass(frozen=True)
class Edits:
    """Impulses fixed before the pass: ``h[block][row, column] += delta``.

    Attributes:
        block: Decoder block.
        rows, columns: ``Int[E]``, where in the pass.
        deltas: ``Float[E D]``.
    """

    block: int
    rows: Int[Tensor, "E"]
    columns: Int[Tensor, "E"]
    deltas: Float[Tensor, "E D"]


@dataclass
class PassPlan:
    """What the next forward pass should do at the hooked blocks, and what it then found.

    Attributes:
        rows: ``Int[R]``, the pass's rows that are at a control point (decode passes only).
        batch: Who those rows are; None when there are none.
        edits: Fixed impulses.
        decide: Whether the controller decides inside this pass.
        states: Block to ``Float[R D]``, filled by the pass, taken before any impulse there.
        impulses: What the controller decided, filled by the pass.
    """

    rows: Int[Tensor, "R"] | None = None
    batch: ControlBatch | None = None
    edits: tuple[Edits, ...] = ()
    decide: bool = False
    states: dict[int, Tensor] = field(default_factory=dict)
    impulses: ImpulseBatch | None = None


class ControlTap:
    """Holds the plan of the current pass where the block hooks can see it."""

    def __init__(self, controller: Controller | None, capture_blocks: tuple[int, ...]) -> None:
        self._controller = controller
        reads = () if controller is None else controller.reads
        self._read_blocks = frozenset((*capture_blocks, *reads))
        self.plan = PassPlan()

    @contextmanager
    def attached(self, blocks: nn.ModuleList, edited_blocks: frozenset[int]) -> Iterator[None]:
        """Hook the blocks that this generation may read or edit."""
        edits = {index: self._edit_of(index) for index in sorted(self._read_blocks | edited_blocks)}
        with block_hooks(blocks, edits):
            yield

    def _edit_of(self, block: int):  # type: ignore[no-untyped-def]  # returns a BlockEdit closure
        def edit(states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"] | None:
            return self._on_block(block, states)

        return edit

    def _on_block(self, block: int, states: Tensor) -> Tensor | None:
        plan = self.plan
        changed: Tensor | None = None
        for edit in plan.edits:
            if edit.block == block:
                changed = states.clone() if changed is None else changed
                place = (edit.rows.to(states.device), edit.columns.to(states.device))
                changed.index_put_(place, edit.deltas.to(states), accumulate=True)
        if plan.batch is None or plan.rows is None or block not in self._read_blocks:
            return changed
        current = states if changed is None else changed
        # Of a model spread over devices, the controller and the registers are at its input.
        home, rows = plan.rows.device, plan.rows.to(states.device)
        found = current[rows, 0].float().to(home)
        plan.states[block] = found
        controller = self._controller
        if not plan.decide or controller is None or controller.block != block:
            return changed
        # The blocks below have run: what the controller reads of them is there.
        plan.impulses = controller.decide(side_by_side(plan.states, controller.reads), plan.batch)
        fires = plan.impulses.fires
        if not bool(fires.any()):
            return changed
        changed = current.clone() if changed is None else changed
        changed[rows[fires.to(states.device)], 0] += plan.impulses.deltas[fires].to(states)
        return changed


def side_by_side(states: dict[int, Tensor], blocks: tuple[int, ...]) -> Float[Tensor, "R W"]:
    """One pass's states of some blocks, as a controller reads them."""
    return torch.cat([states[block] for block in blocks], dim=1)


def stack_states(states: dict[int, Tensor], blocks: tuple[int, ...]) -> Float[Tensor, "R L D"]:
    """Stack one pass's captured states in block order."""
    return torch.stack([states[block] for block in blocks], dim=1)
