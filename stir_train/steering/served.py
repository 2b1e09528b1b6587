"""A run's controllers in the process of a server, which is told of the run as JSON."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from stir_train.config.base import FrozenConfig
from stir_train.config.inputs import ModelConfig
from stir_train.config.steering import AnySteering, ScaledSteering, SteeringConfig, VectorSteering
from stir_train.data.control_points import build_automaton
from stir_train.errors import ConfigError
from stir_train.generation.backend import ControlSpec
from stir_train.generation.controller import Controller, controllers_of
from stir_train.generation.fixed import FixedVector
from stir_train.models.describe import load_tokenizer
from stir_train.models.identity import ModelIdentity
from stir_train.steering.artifacts import open_run_artifacts

OPENER = "stir_train.steering.served:open_served"
"""Import path of `open_served`."""
STRENGTHS_KEPT = 16
"""Controllers of so many strengths are kept; others are made again."""


class ServedRun(FrozenConfig):
    """A run to be served."""

    directory: Path
    """Of the run."""
    identity: ModelIdentity
    """Of the model that is served, which must be that of the run."""
    model: ModelConfig
    """Whose tokenizer finds control points."""
    vocab_size: int
    """Rows of its output layer."""
    settings: AnySteering
    """Of the controller at strength 1."""


class RunSteering:
    """The controllers of a run, at any strength."""

    def __init__(self, run: ServedRun, device: torch.device) -> None:
        """Read what the run has, verified.

        Args:
            run: The run.
            device: Of the states.

        Raises:
            ArtifactError: If the run was made for another model, or is damaged.
        """
        self._settings, self._device = run.settings, device
        self._artifacts = open_run_artifacts(run.directory, run.identity)
        points = self._artifacts.control_points()
        tokenizer = load_tokenizer(run.model)
        automaton = build_automaton(tokenizer, points, vocab_size=run.vocab_size)
        self.control = ControlSpec(automaton, points.max_points)
        self.controllers = lru_cache(maxsize=STRENGTHS_KEPT)(self._controllers)

    def _controllers(self, strength: float) -> tuple[Controller, ...]:
        settings = scaled(self._settings, strength)
        return controllers_of(self._artifacts.controller(settings, device=self._device))

    @property
    def is_the_same_for_all(self) -> bool:
        """Whether all that is added is the same at every token of every prompt and completion."""
        return all(
            isinstance(controller, FixedVector) and controller.place == "every_token"
            for controller in self.controllers(1.0)
        )


def open_served(source: str, device: torch.device) -> RunSteering:
    """The controllers of a run that is told as JSON."""
    return RunSteering(ServedRun.model_validate_json(source), device)


def scaled(settings: SteeringConfig, strength: float) -> SteeringConfig:
    """The same settings, what is injected that many times as strong.

    Raises:
        ConfigError: If the mode has no strength.
    """
    if strength == 1:
        return settings
    if isinstance(settings, VectorSteering):
        actions = tuple(
            action.model_copy(update={"strength": strength * action.strength})
            for action in settings.actions
        )
        return settings.model_copy(update={"actions": actions})
    if isinstance(settings, ScaledSteering):
        return settings.model_copy(update={"strength": strength * settings.strength})
    raise ConfigError(f"steering.mode={settings.mode} has no strength")
