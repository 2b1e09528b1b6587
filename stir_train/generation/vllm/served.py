"""What a server steers with, and what its requests may ask for. It imports no vLLM.

vLLM's server has three processes: one answers HTTP, one schedules and keeps the prefix cache, one runs the
model. `Attachment` is what all three are told, as JSON; the controllers live in the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from stir_train.config.base import FrozenConfig
from stir_train.generation.backend import ControlSpec
from stir_train.generation.controller import Controller
from stir_train.types.places import Place

STRENGTH = "steering_strength"
"""What a request may set in ``vllm_xargs``: 1 is as the run chose, 0 is off, 2 is twice as strong."""
MAX_STRENGTH = 100.0
"""Above it a state would be no number before long."""
CONFIG_KEY = "stir_train"
"""Of the attachment, in vLLM's ``additional_config``."""


class Attachment(FrozenConfig):
    """What a vLLM worker needs to know to steer, sent to it in ``additional_config``."""

    opener: str
    """Import path of what makes a `ServedSteering` from `source` and a device."""
    source: str
    """What the opener needs to know, as JSON."""
    places: tuple[Place, ...]
    """Where its controllers act."""
    num_blocks: int
    """Of the model."""
    shares_prompts: bool = False
    """Whether requests of one strength have the same prompts steered the same, so that they may share them."""


@runtime_checkable
class ServedSteering(Protocol):
    """The controllers of a server."""

    @property
    def control(self) -> ControlSpec:
        """The automaton that finds control points, how many are used, and which blocks are captured there."""
        ...

    def controllers(self, strength: float) -> Sequence[Controller]:
        """Who steers at a strength, relative to the run's own."""
        ...


def attachment_of(additional_config: Mapping[str, Any]) -> Attachment:
    """The attachment in vLLM's ``additional_config``."""
    return Attachment.model_validate(additional_config[CONFIG_KEY])


def strength_of(extra_args: Mapping[str, Any] | None, *, has_adapter: bool) -> float:
    """How strongly a request is steered.

    Args:
        extra_args: Of its sampling parameters.
        has_adapter: Whether it is for a model with an adapter, which nobody steers.
    """
    return 0.0 if has_adapter else float((extra_args or {}).get(STRENGTH, 1.0))


def refusal(
    extra_args: Mapping[str, Any] | None, *, has_adapter: bool, steers: bool, is_beam: bool
) -> str | None:
    """Why a request cannot be answered as it asks, if so.

    Args:
        extra_args: Of its sampling parameters.
        has_adapter: Whether it is for a model with an adapter.
        steers: Whether the server has controllers.
        is_beam: Whether it is a step of a beam search.
    """
    given = extra_args or {}
    unknown = sorted(name for name in given if name.startswith("steer") and name != STRENGTH)
    if unknown:
        return f"vllm_xargs.{unknown[0]}: unknown; did you mean {STRENGTH}?"
    wanted = given.get(STRENGTH, 1.0)
    is_number = isinstance(wanted, int | float) and 0 <= wanted <= MAX_STRENGTH
    if not is_number:
        return (
            f"vllm_xargs.{STRENGTH}: expected a number from 0 (off) to {MAX_STRENGTH:g}, where 1 is as "
            f"the run chose; got {wanted!r}"
        )
    if STRENGTH in given and wanted and has_adapter:
        return f"vllm_xargs.{STRENGTH}: the student is served as it was evaluated, without steering"
    if STRENGTH in given and wanted and not steers:
        return f"vllm_xargs.{STRENGTH}: this run chose not to steer, so there is nothing to add"
    if is_beam and steers and not has_adapter:
        return (
            "use_beam_search: beams are fed as prompts, in which nobody is asked; ask for n samples, or "
            "for the student"
        )
    return None
