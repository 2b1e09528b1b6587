"""The steered teacher again: which impulses a completion was made under, and where in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.errors import StageError
from stir_train.types.rollout import Rollout


@dataclass(frozen=True)
class ControlPoints:
    """The control points of a batch and what was injected there.

    Attributes:
        block: The steered block.
        rows, columns: ``Int[P]``.
        deltas: ``Float[P D]``; zero where the controller did nothing.
        count: Control points of the whole batch, of which this may be one rank's part.
        decide: Chooses the deltas from the teacher's states ``Float[P W]`` instead, where nobody has
            steered yet: completions of a student.
        reads: The blocks of those states, side by side; the last is ``block``.
    """

    block: int
    rows: Int[Tensor, "P"]
    columns: Int[Tensor, "P"]
    deltas: Float[Tensor, "P D"]
    count: int
    decide: Callable[[Tensor], Tensor] | None = None
    reads: tuple[int, ...] = ()

    def inject(
        self, states: Float[Tensor, "B T D"], below: Sequence[Float[Tensor, "P D"]] = ()
    ) -> Float[Tensor, "B T D"]:
        """Add the impulses to the block's output; ``below`` is what was read before it."""
        device = states.device
        place = (self.rows.to(device), self.columns.to(device))
        deltas = self.deltas
        if self.decide is not None:
            deltas = self.decide(
                torch.cat([*(b.to(device) for b in below), self.at(states)], dim=1)
            )
        return states.index_put(place, deltas.to(states), accumulate=True)

    def at(self, states: Float[Tensor, "B T D"]) -> Float[Tensor, "P D"]:
        """The states at the control points."""
        return states[self.rows.to(states.device), self.columns.to(states.device)]


def control_points_of(
    samples: Sequence[Rollout], directions: Float[Tensor, "K D"], *, block: int, count: int
) -> ControlPoints:
    """Find a batch's control points, each sample in a row that starts with its prompt."""
    rows: list[int] = []
    columns: list[int] = []
    deltas = torch.zeros(sum(len(s.control_points) for s in samples), directions.shape[1])
    for row, sample in enumerate(samples):
        injected = {impulse.token_index: impulse for impulse in sample.impulses}
        for token_index in sample.control_points:
            impulse = injected.get(token_index)
            if impulse is not None:
                deltas[len(rows)] = impulse.strength * directions[impulse.entry]
            rows.append(row)
            columns.append(len(sample.prompt_token_ids) + token_index)
    places = torch.tensor([rows, columns], dtype=torch.long)
    return ControlPoints(block, places[0], places[1], deltas, count)


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
