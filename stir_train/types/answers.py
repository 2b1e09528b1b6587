"""What answering problems gave."""

from __future__ import annotations

from dataclasses import dataclass

from stir_train.types.rollout import Rollout
from stir_train.types.steering import SteeringDecision
from stir_train.types.trajectory import CapturedStates


@dataclass(frozen=True)
class Answers:
    """Completions of some prompts, and what was seen and decided on the way.

    Attributes:
        rollouts: One per prompt and sample, the samples of a prompt next to one another.
        forward_passes: Model calls that all of them took together.
        states: States at control points, in the order of the rollouts; None if none were asked for.
        decisions: A controller's, in the order in which it made them; None if none was there.
        num_reused: Of each rollout, the first tokens that were not decoded but taken over from a greedy answer;
            None if nothing could be.
    """

    rollouts: tuple[Rollout, ...]
    forward_passes: int
    states: CapturedStates | None = None
    decisions: tuple[SteeringDecision, ...] | None = None
    num_reused: tuple[int, ...] | None = None
