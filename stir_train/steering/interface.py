"""How a controller is made from a run: what it is given, and what gives it.

A mode's settings name what makes its controller by import path (`SteeringSettings.made_by`), the
user's own (``steering.mode: custom``) like those that are shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from stir_train.config.import_path import load_object
from stir_train.config.stages import UtilityConfig
from stir_train.config.steering import CustomSteering, ScaledSteering, SteeringConfig
from stir_train.errors import ConfigError
from stir_train.generation.backend import ControlBatch, Controller, ImpulseBatch
from stir_train.models.value_head import ValueHead
from stir_train.types.steering import ControlBasis, SteeringDecision


@runtime_checkable
class SteeringController(Controller, Protocol):
    """A `Controller` that keeps a log of what it decided."""

    decisions: list[SteeringDecision]


@dataclass(frozen=True)
class ControllerInputs:
    """What a run offers to make a controller from.

    Attributes:
        settings: The mode's settings.
        basis: The control basis as validated, of every harvested block, on the CPU.
        block: Where to steer: the block at the settings' depth.
        head: Reads the value head of a block, frozen, on the CPU.
        utility: What an answer is worth.
        device: Where the states will be.
    """

    settings: SteeringConfig
    basis: ControlBasis
    block: int
    head: Callable[[int], ValueHead]
    utility: UtilityConfig
    device: torch.device

    @property
    def strength(self) -> float:
        """``steering.strength``, which tuning varies; 0 in mode ``none``."""
        return self.settings.strength if isinstance(self.settings, ScaledSteering) else 0.0

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """``steering.options`` of a controller of the user's own."""
        return self.settings.options if isinstance(self.settings, CustomSteering) else {}


@runtime_checkable
class Decider(Protocol):
    """What a controller of one's own has to be: it decides, and keeps nothing.

    Attributes:
        block: The block after which it injects.
        reads: The blocks whose states it is given, ascending; the last is ``block``.
    """

    block: int
    reads: tuple[int, ...]

    def decide(self, states: Float[Tensor, "R W"], batch: ControlBatch) -> ImpulseBatch:
        """Choose impulses for ``R`` rows at a control point.

        Args:
            states: ``Float[R W]``, float32: the states that ``reads`` names, side by side, so that the
                last ``D`` columns are those of ``block``.
            batch: Which rollouts they are of, and at which control point.
        """
        ...


class RecordedController:
    """A `Decider` with the log that the engine's callers read; nothing but the decisions is kept."""

    def __init__(self, decider: Decider) -> None:
        self.block = decider.block
        self.reads = decider.reads
        self.decisions: list[SteeringDecision] = []
        self._decider = decider

    def reset(self) -> None:
        """Empty the log."""
        self.decisions.clear()

    def decide(self, states: Float[Tensor, "R W"], batch: ControlBatch) -> ImpulseBatch:
        """Pass on what the decider chooses, and log it; its scores are its own affair."""
        impulses = self._decider.decide(states, batch)
        points, fires = batch.points.tolist(), impulses.fires.tolist()
        entries, strengths = impulses.entries.tolist(), impulses.strengths.tolist()
        for i, prompt_id in enumerate(batch.prompt_ids):
            chosen = entries[i] if fires[i] else -1
            candidates = (chosen,) if chosen >= 0 else ()
            self.decisions.append(
                SteeringDecision(
                    prompt_id=prompt_id,
                    sample=batch.samples[i],
                    point=points[i],
                    token_index=batch.token_indices[i],
                    block=self.block,
                    candidates=candidates,
                    scores=(0.0,) * len(candidates),
                    null_score=0.0,
                    chosen=chosen,
                    strength=strengths[i] if fires[i] else 0.0,
                )
            )
        return impulses


def make_controller(inputs: ControllerInputs) -> SteeringController:
    """The controller of the settings' mode.

    Raises:
        ConfigError: If what the settings name cannot be imported, or makes no controller.
    """
    path = inputs.settings.controller_path
    factory = load_object(path, kind="steering.controller")
    if not callable(factory):
        raise ConfigError(
            f"steering.controller: {path} is of type {type(factory).__name__}; expected a class or function "
            "that takes ControllerInputs"
        )
    made = factory(inputs)
    if isinstance(made, SteeringController):
        return made
    if isinstance(made, Decider):
        return RecordedController(made)
    lacking = [name for name in ("block", "reads", "decide") if not hasattr(made, name)]
    raise ConfigError(
        f"steering.controller: {path} made a {type(made).__name__} without {', '.join(lacking)}; "
        "a controller has block, reads and decide"
    )
