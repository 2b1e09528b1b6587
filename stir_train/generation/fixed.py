"""Vectors that are added whatever the state, each at a place of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from stir_train.generation.controller import ControlBatch, Decision
from stir_train.types.places import Place


@dataclass(frozen=True)
class FixedVector:
    """A `Controller` that adds ``strength * vector`` to one block at the tokens of a place.

    Attributes:
        place: At which tokens; see `Place`.
        block: The block.
        vector: ``Float[D]``.
        strength: Its multiplier; at 0 every token is bitwise that of plain decoding.
    """

    place: Place
    block: int
    vector: Float[Tensor, "D"]
    strength: float = 1.0

    @property
    def reads(self) -> tuple[int, ...]:
        """Its own block, as every controller."""
        return (self.block,)

    def decide(
        self,
        states: Float[Tensor, "R D"],
        batch: ControlBatch,  # noqa: ARG002 - the protocol's
    ) -> Decision:
        """The same for every row."""
        vector = self.vector.to(states)
        return Decision.same_everywhere(vector, self.strength, num_rows=len(states))


FixedActions = Sequence[FixedVector]
"""Several at once, as in a vector held over the completion and an impulse at the prompt's end."""
