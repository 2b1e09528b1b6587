"""Vectors that go on being added to rows from one decoding pass to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.generation.control_hook import Ask, Edits
from stir_train.generation.controller import Decision
from stir_train.types.places import HELD_PLACES, Place


@dataclass
class _Lane:
    """What is added to each row in one block; rows that are not active hold zeros."""

    deltas: Float[Tensor, "B D"]
    active: Bool[Tensor, "B"]


class Holds:
    """The held vectors of rows ``0..B-1``, by block and by whether a control point ends them."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._num_rows, self.device = num_rows, device
        self._lanes: dict[tuple[int, bool], _Lane] = {}

    def hold(
        self, rows: Int[Tensor, "R"], block: int, place: Place, deltas: Float[Tensor, "R D"]
    ) -> None:
        """Add vectors to distinct rows from their next pass on."""
        key = (block, place == "segment")
        if key not in self._lanes:
            self._lanes[key] = _Lane(
                torch.zeros(self._num_rows, deltas.shape[1], device=self.device),
                torch.zeros(self._num_rows, dtype=torch.bool, device=self.device),
            )
        lane = self._lanes[key]
        lane.deltas[rows] += deltas.to(lane.deltas)
        lane.active[rows] = True

    def hold_decided(self, ask: Ask, decision: Decision, rows: Int[Tensor, "R"]) -> None:
        """Hold what a controller decided, if its place says so; ``rows`` are those asked about."""
        controller = ask.controller
        if controller.place in HELD_PLACES:
            fired = decision.fires.nonzero()[:, 0]
            if len(fired):
                self.hold(rows[fired], controller.block, controller.place, decision.deltas[fired])

    def end_segments(self, rows: Int[Tensor, "R"]) -> None:
        """Let go of what was held since the last control point of rows that are at the next."""
        for (_, ends_at_point), lane in self._lanes.items():
            if ends_at_point:
                self._clear(lane, rows)

    def release(self, rows: Int[Tensor, "R"] | int) -> None:
        """Add nothing to some rows from now on, whatever was held there."""
        for lane in self._lanes.values():
            self._clear(lane, rows)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what is held on rows ``sources`` to rows ``targets``, as when slots are filled up."""
        for lane in self._lanes.values():
            lane.deltas[targets] = lane.deltas[sources]
            lane.active[targets] = lane.active[sources]

    def edits(self, num_rows: int) -> tuple[Edits, ...]:
        """What a decoding pass over rows ``0..num_rows-1``, one token each, adds."""
        found = []
        for (block, _), lane in self._lanes.items():
            rows = lane.active[:num_rows].nonzero()[:, 0]
            if len(rows):
                found.append(Edits(block, rows, torch.zeros_like(rows), lane.deltas[rows]))
        return tuple(found)

    @staticmethod
    def _clear(lane: _Lane, rows: Int[Tensor, "R"] | int) -> None:
        lane.deltas[rows] = 0
        lane.active[rows] = False
