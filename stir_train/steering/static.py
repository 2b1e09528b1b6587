"""The static control: one constant vector at every control point, whatever the state."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.config.steering import StaticSteering
from stir_train.generation.backend import ControlBatch, ImpulseBatch, no_impulses
from stir_train.steering.interface import ControllerInputs
from stir_train.types.steering import ControlBasis, SteeringDecision


class StaticController:
    """Adds ``strength`` times the mean correction of a block at every control point.

    The mean is scaled to the corrections' median norm, so that a strength means the same as for
    single entries. It is what steering comes to without retrieval, gate or value head; a task that
    it wins needs none of them.
    """

    def __init__(
        self, basis: ControlBasis, config: StaticSteering, *, block: int, device: torch.device
    ) -> None:
        self.block = block
        self.reads: tuple[int, ...] = (block,)
        self.decisions: list[SteeringDecision] = []
        self._strength = config.strength
        self._direction = mean_direction(basis, block).to(device)

    def reset(self) -> None:
        """Empty the log."""
        self.decisions.clear()

    def decide(self, states: Float[Tensor, "R D"], batch: ControlBatch) -> ImpulseBatch:
        """Steer every row alike; the logged entry is -1, for a vector that is in no basis."""
        impulses = no_impulses(states)
        if not bool(self._direction.any()):
            return impulses
        num_rows = states.shape[0]
        points = batch.points.tolist()
        for i, prompt_id in enumerate(batch.prompt_ids):
            self.decisions.append(
                SteeringDecision(
                    prompt_id=prompt_id,
                    sample=batch.samples[i],
                    point=points[i],
                    token_index=batch.token_indices[i],
                    block=self.block,
                    candidates=(),
                    scores=(),
                    null_score=0.0,
                    chosen=-1,
                    strength=self._strength,
                )
            )
        return ImpulseBatch(
            fires=torch.ones(num_rows, dtype=torch.bool, device=states.device),
            deltas=(self._strength * self._direction).expand(num_rows, -1),
            entries=impulses.entries,
            strengths=torch.full((num_rows,), self._strength, device=states.device),
        )


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
