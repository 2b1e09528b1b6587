"""The steered teacher again: where a batch has control points, and what is added in the pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from stir_train.errors import StageError
from stir_train.generation.control_hook import PassPlan
from stir_train.generation.controller import Controller
from stir_train.generation.rollout_plan import control_sites, recorded_edits
from stir_train.types.rollout import Impulse, Rollout


@dataclass(frozen=True)
class ControlPoints:
    """The control points of a batch and what the teacher's pass does.

    Attributes:
        block: The steered block, whose states are compared.
        rows, columns: ``Int[P]``.
        count: Control points of the whole batch, of which this may be one rank's part.
        plan: Adds what was recorded, or asks the controllers where nobody has steered yet: completions
            of a student.
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


def control_points_of(
    samples: Sequence[Rollout], directions: Float[Tensor, "K D"], *, block: int, count: int
) -> ControlPoints:
    """Find a batch's control points, each sample in a row that starts with its prompt."""

    def delta_of(impulse: Impulse) -> Tensor:
        return impulse.strength * directions[impulse.entry]

    sites = control_sites(samples)
    plan = PassPlan(edits=recorded_edits(samples, delta_of))
    return ControlPoints(block, sites.rows, sites.columns, count, plan)


def steered_block(samples: Sequence[Rollout]) -> int:
    """The one block in which samples were steered; the first if none was.

    Raises:
        StageError: If an impulse is of no basis entry, or there are several blocks.
    """
    impulses = [impulse for sample in samples for impulse in sample.impulses]
    if any(impulse.entry < 0 for impulse in impulses):
        raise StageError(
            "distill.objective: logits and states replay impulses of the control basis; the chosen "
            "steering injects one static vector; use the sequence objective alone"
        )
    blocks = {impulse.block for impulse in impulses}
    if len(blocks) > 1:
        raise StageError(f"samples were steered in blocks {sorted(blocks)}; replay takes one")
    return next(iter(blocks), 0)
