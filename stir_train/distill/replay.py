"""The steered teacher again: where a batch has control points, and what is added in the pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.errors import StageError
from stir_train.generation.control_hook import PassPlan
from stir_train.generation.controller import Controller, Steering, controllers_of
from stir_train.generation.rollout_plan import asks_again, control_sites, recorded_edits
from stir_train.types.rollout import Impulse, Rollout


@dataclass(frozen=True)
class ControlPoints:
    """The control points of a batch and what the teacher's pass does.

    Attributes:
        block: The steered block, whose states are compared.
        rows, columns: ``Int[P]``.
        count: Control points of the whole batch, of which this may be one rank's part.
        plan: Adds what was recorded, or asks the controllers.
        controllers: Those that the plan asks.
    """

    block: int
    rows: Int[Tensor, "P"]
    columns: Int[Tensor, "P"]
    count: int
    plan: PassPlan
    controllers: tuple[Controller, ...] = ()

    def at(self, states: Float[Tensor, "B T D"]) -> Float[Tensor, "P D"]:
        """The states at the control points."""
        return states[self.rows.to(states.device), self.columns.to(states.device)]


@runtime_checkable
class Replay(Protocol):
    """How a steered teacher's pass over finished completions comes to what it adds.

    Attributes:
        max_points: Control points of a completion that are compared; None is all.
    """

    @property
    def max_points(self) -> int | None:
        """Control points of a completion that are compared."""
        ...

    def points_of(self, samples: Sequence[Rollout], *, count: int) -> ControlPoints:
        """A part's control points and plan, each sample in a row that starts with its prompt.

        Args:
            samples: Of the part.
            count: Control points of the whole batch.
        """
        ...


@dataclass(frozen=True)
class RecordedImpulses:
    """Adds again what was recorded: entries of the basis, each with its strength.

    Attributes:
        directions: ``Float[K D]``, the basis's.
        block: The steered block.
        max_points: All.
    """

    directions: Float[Tensor, "K D"]
    block: int
    max_points: int | None = None

    def points_of(self, samples: Sequence[Rollout], *, count: int) -> ControlPoints:
        """Where the samples have control points, and their impulses."""
        sites = control_sites(samples)
        plan = PassPlan(edits=recorded_edits(samples, self._delta_of))
        return ControlPoints(self.block, sites.rows, sites.columns, count, plan)

    def _delta_of(self, impulse: Impulse) -> Tensor:
        return impulse.strength * self.directions[impulse.entry]


@dataclass(frozen=True)
class DecidedAgain:
    """Asks controllers inside the pass: of completions that nobody steered, or by vectors that are in no basis.

    A block's own states do not depend on what is added in it, and blocks above see it in the same pass. So
    one pass decides everything, as decoding would.

    Attributes:
        steering: Controllers that decide without previews, and read nothing but states.
        max_points: Of a completion, at which they are asked.
        device: Of the model.
    """

    steering: Steering
    max_points: int
    device: torch.device

    def points_of(self, samples: Sequence[Rollout], *, count: int) -> ControlPoints:
        """Where the controllers may act; states are compared in the last block that they edit."""
        asks = asks_again(samples, self.steering, max_points=self.max_points, device=self.device)
        sites = control_sites(samples, max_points=self.max_points)
        controllers = controllers_of(self.steering)
        block = max(controller.block for controller in controllers)
        return ControlPoints(
            block, sites.rows, sites.columns, count, PassPlan(asks=asks), controllers
        )


def num_points(samples: Sequence[Rollout], replay: Replay) -> int:
    """Control points of samples that a replay compares."""
    return sum(len(sample.control_points[: replay.max_points]) for sample in samples)


def steered_block(samples: Sequence[Rollout]) -> int:
    """The one block in which samples were steered; the first if none was.

    Raises:
        StageError: If there are several blocks.
    """
    blocks = {impulse.block for sample in samples for impulse in sample.impulses}
    if len(blocks) > 1:
        raise StageError(f"samples were steered in blocks {sorted(blocks)}; replay takes one")
    return next(iter(blocks), 0)
