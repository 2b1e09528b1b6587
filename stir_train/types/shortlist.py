"""What is known of settings before any of them has answered a problem."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stir_train.config.steering import SteeringConfig

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class GainEstimate:
    """What one decision of a controller gains in utility, estimated from the log of validation.

    Attributes:
        gain: Mean over logged states, those where it adds nothing included.
        standard_error: Of the gain.
        num_effective: Effective sample size (Kish) of the replays that have its actions; of a controller that
            adds nothing anywhere, whose gain is known, every replay.
        share_steered: Of logged states, those where it adds something.
    """

    gain: float
    standard_error: float
    num_effective: float
    share_steered: float


@dataclass(frozen=True, config=STRICT)
class RankedSetting:
    """Settings that were ranked before anything was decoded.

    Attributes:
        name: Of the settings in short, as of a trial.
        settings: What might be tried.
        estimate: None where no replay has its actions.
        is_tried: Whether it was; the others were left out for what was estimated of them.
    """

    name: str
    settings: Annotated[SteeringConfig, Field(discriminator="mode")]
    estimate: GainEstimate | None
    is_tried: bool


@dataclass(frozen=True, config=STRICT)
class Shortlist:
    """What the log of validation said of settings, before any was tried.

    Attributes:
        num_replays: Trials in the log.
        ranked: Settings of the modes of which there are estimates, as they are in the grid.
        tokens_saved: What those left out would have decoded on the problems that every setting answers, if they
            took as many tokens as those that were tried.
    """

    num_replays: int
    ranked: tuple[RankedSetting, ...]
    tokens_saved: float = 0.0

    @property
    def num_left_out(self) -> int:
        """How many settings were not tried."""
        return sum(not setting.is_tried for setting in self.ranked)
