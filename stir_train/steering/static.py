"""The static control: one constant vector at every control point, whatever the state."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.config.steering import StaticSteering
from stir_train.generation.controller import ControlBatch, Decision
from stir_train.steering.interface import ControllerInputs
from stir_train.types.places import Place
from stir_train.types.steering import ControlBasis


class StaticController:
    """Adds ``strength`` times the mean correction of a block at every control point.

    The mean is scaled to the corrections' median norm, so that a strength means the same as for
    single entries. It is what steering comes to without retrieval, gate or value head; a task that
    it wins needs none of them.
    """

    place: Place = "control_point"

    def __init__(
        self, basis: ControlBasis, config: StaticSteering, *, block: int, device: torch.device
    ) -> None:
        self.block = block
        self.reads: tuple[int, ...] = (block,)
        self._strength = config.strength
        self._direction = mean_direction(basis, block).to(device)

    def decide(
        self,
        states: Float[Tensor, "R D"],
        batch: ControlBatch,  # noqa: ARG002 - the protocol's
    ) -> Decision | None:
        """Steer every row alike, by a vector that is in no basis; None without corrections."""
        if not bool(self._direction.any()):
            return None
        return Decision.same_everywhere(self._direction, self._strength, num_rows=len(states))


def make_static_controller(inputs: ControllerInputs) -> StaticController:
    """The controller of mode ``static``."""
    settings = inputs.settings
    assert isinstance(settings, StaticSteering)
    return StaticController(inputs.basis, settings, block=inputs.block, device=inputs.device)


def mean_direction(basis: ControlBasis, block: int) -> Float[Tensor, "D"]:
    """Mean direction of a block's right-against-wrong corrections (of all, where there are none)."""
    corrections = ~basis.is_anchor & (basis.blocks == block)
    chosen = corrections & ~basis.saves_tokens
    directions = basis.directions[chosen if bool(chosen.any()) else corrections]
    if not len(directions):
        return torch.zeros(basis.directions.shape[1])
    norm = directions.norm(dim=-1).median()
    return torch.nn.functional.normalize(directions.mean(0), dim=-1) * norm
