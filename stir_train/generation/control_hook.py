"""One pass under control: read the states at given positions, ask the controllers, add, and record.

The engine, `steering` inside plain ``generate`` and teacher-forced passes all steer through
`ControlHook`. They differ in how they find the positions, which a `PassPlan` lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stir_train.generation.controller import ControlBatch, Controller, Decision
from stir_train.models.hooks import block_hooks
from stir_train.types.places import PLACES_AT_PROMPT


@dataclass(frozen=True)
class Sites:
    """Positions in a pass, and whose they are.

    Attributes:
        rows, columns: ``Int[R]``.
        batch: The same positions as a controller sees them.
    """

    rows: Int[Tensor, "R"]
    columns: Int[Tensor, "R"]
    batch: ControlBatch


@dataclass(frozen=True)
class Edits:
    """Vectors fixed before the pass: ``h[block][row, column] += delta``.

    Attributes:
        block: Decoder block.
        rows, columns: ``Int[E]``, where in the pass.
        deltas: ``Float[E D]``.
    """

    block: int
    rows: Int[Tensor, "E"]
    columns: Int[Tensor, "E"]
    deltas: Float[Tensor, "E D"]


@dataclass(frozen=True)
class Ask:
    """A question to a controller inside the pass.

    Attributes:
        controller: Who is asked.
        sites: Where its states are read.
        first, last: ``Int[R]``, the columns of the pass at which its delta is added, both included.
    """

    controller: Controller
    sites: Sites
    first: Int[Tensor, "R"]
    last: Int[Tensor, "R"]

    def edits(self, decision: Decision) -> Edits:
        """What a decision adds in this pass."""
        fired = decision.fires.nonzero()[:, 0]
        lengths = (self.last - self.first + 1)[fired]
        owner = fired.repeat_interleave(lengths)
        begin = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        offset = torch.arange(len(owner), device=owner.device) - begin
        return Edits(
            self.controller.block,
            self.sites.rows[owner],
            self.first[owner] + offset,
            decision.deltas[owner],
        )


@dataclass(frozen=True)
class PassPlan:
    """What one forward pass does at the hooked blocks.

    Attributes:
        captures: Where states are kept, of the hook's ``capture_blocks``.
        asks: Who decides where.
        edits: What is added whatever they decide.
    """

    captures: Sites | None = None
    asks: tuple[Ask, ...] = ()
    edits: tuple[Edits, ...] = ()


@dataclass
class PassRecord:
    """What a pass found, filled as its blocks run.

    Attributes:
        states: Block to ``Float[R D]``, the captured states, before anything is added there.
        decided: Each question with its answer; those of controllers that never act are left out.
    """

    states: dict[int, Tensor] = field(default_factory=dict)
    decided: list[tuple[Ask, Decision]] = field(default_factory=list)


class ControlHook:
    """Carries out the plan of the current pass at the blocks of a model."""

    def __init__(
        self, controllers: Sequence[Controller] = (), capture_blocks: Sequence[int] = ()
    ) -> None:
        self._capture_blocks = frozenset(capture_blocks)
        self._hooked = self._capture_blocks | {b for c in controllers for b in c.reads}
        self._plan, self._record = PassPlan(), PassRecord()
        self._read: dict[int, dict[int, Tensor]] = {}

    @contextmanager
    def attached(
        self, blocks: nn.ModuleList, edited_blocks: frozenset[int] = frozenset()
    ) -> Iterator[None]:
        """Hook the blocks that plans may read or edit."""
        hooked = sorted(self._hooked | edited_blocks)
        with block_hooks(blocks, {block: partial(self._on_block, block) for block in hooked}):
            yield

    @contextmanager
    def carrying_out(self, plan: PassPlan) -> Iterator[PassRecord]:
        """Follow a plan in the passes inside the context, of which there is to be one."""
        record = self.begin(plan)
        try:
            yield record
        finally:
            self.begin(PassPlan())

    def begin(self, plan: PassPlan) -> PassRecord:
        """Follow a plan from the next pass on; what it finds goes to the record returned."""
        self._plan, self._record, self._read = plan, PassRecord(), {}
        return self._record

    def _on_block(self, block: int, states: Float[Tensor, "B T D"]) -> Tensor | None:
        return edited_states(states, self.edits_at(block, states))

    def acts_at(self, block: int) -> bool:
        """Whether the current plan reads or edits a block."""
        plan = self._plan
        return (
            (plan.captures is not None and block in self._capture_blocks)
            or any(block in ask.controller.reads for ask in plan.asks)
            or any(edit.block == block for edit in plan.edits)
        )

    def edits_at(self, block: int, states: Float[Tensor, "B T D"]) -> list[Edits]:
        """Read a block's states and ask who acts there; return all that is then to be added in it."""
        plan = self._plan
        edits = [edit for edit in plan.edits if edit.block == block]
        if plan.captures is not None and block in self._capture_blocks:
            self._record.states[block] = _states_at(states, plan.captures)
        for index, ask in enumerate(plan.asks):
            controller = ask.controller
            if block not in controller.reads:
                continue
            read = self._read.setdefault(index, {})
            read[block] = _states_at(states, ask.sites)
            if block != controller.block:
                continue
            # The blocks below have run: what the controller reads of them is there.
            decision = controller.decide(side_by_side(read, controller.reads), ask.sites.batch)
            if decision is not None:
                self._record.decided.append((ask, decision))
                edits.append(ask.edits(decision))
        return edits


def edited_states(states: Float[Tensor, "B T D"], edits: Sequence[Edits]) -> Tensor | None:
    """The states with everything added, or None if there is nothing to add."""
    changed: Tensor | None = None
    for edit in edits:
        if not len(edit.rows):
            continue
        changed = states.clone() if changed is None else changed
        place = (edit.rows.to(states.device), edit.columns.to(states.device))
        changed.index_put_(place, edit.deltas.to(states), accumulate=True)
    return changed


def _states_at(states: Float[Tensor, "B T D"], sites: Sites) -> Float[Tensor, "R D"]:
    """States in float32 where the sites are: of a model spread over devices, at its input."""
    rows, columns = sites.rows.to(states.device), sites.columns.to(states.device)
    return states[rows, columns].float().to(sites.rows.device)


def asks_at_points(
    controllers: Sequence[Controller], sites: Sites, until: Int[Tensor, "R"]
) -> tuple[Ask, ...]:
    """Ask those that act at control points.

    Args:
        controllers: All of them.
        sites: The control points of the pass.
        until: ``Int[R]``, the last column of the pass that is in the same segment.
    """
    return tuple(
        Ask(c, sites, sites.columns, until if c.place == "segment" else sites.columns)
        for c in controllers
        if c.place not in PLACES_AT_PROMPT
    )


def asks_at_prompt(
    controllers: Sequence[Controller],
    sites: Sites,
    until: Int[Tensor, "R"],
    starts: Int[Tensor, "R"] | None = None,
) -> tuple[Ask, ...]:
    """Ask those that act at the prompt's end.

    Args:
        controllers: All of them.
        sites: Where the prompts of the pass end.
        until: ``Int[R]``, the last column of the pass that is fed.
        starts: ``Int[R]``, the columns where the prompts begin; None is column 0.
    """
    starts = torch.zeros_like(sites.columns) if starts is None else starts
    return tuple(
        Ask(
            c,
            sites,
            starts if c.place == "every_token" else sites.columns,
            sites.columns if c.place == "prompt_end" else until,
        )
        for c in controllers
        if c.place in PLACES_AT_PROMPT
    )


def side_by_side(states: Mapping[int, Tensor], blocks: Sequence[int]) -> Float[Tensor, "R W"]:
    """One pass's states of some blocks, as a controller reads them."""
    return torch.cat([states[block] for block in blocks], dim=1)


def stack_states(states: Mapping[int, Tensor], blocks: Sequence[int]) -> Float[Tensor, "R L D"]:
    """Stack one pass's captured states in block order."""
    return torch.stack([states[block] for block in blocks], dim=1)
