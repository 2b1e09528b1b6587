"""The protocol of what answers problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from stir_train.generation.backend import Ability, GenerationBackend, SamplingParams
from stir_train.types.answers import Answers
from stir_train.types.rollout import Prompt

BASE = "base"
"""The run's own model."""


class Answerer(Protocol):
    """Answers problems: a controller over a backend, a baseline with its setting, a student.

    Attributes:
        model: Which model it runs, by name; what runs the same one is made together.
        needs: What it needs the backend to be able to do.
    """

    @property
    def model(self) -> str:
        """Name of the model that answers."""
        ...

    @property
    def needs(self) -> frozenset[Ability]:
        """Abilities of the backend without which it cannot answer."""
        ...

    def open(self) -> GenerationBackend:
        """Load the model, if it is not there yet. Collective where ranks hold it together."""
        ...

    def answer(
        self, prompts: Sequence[Prompt], *, num_samples: int, sampling: SamplingParams
    ) -> Answers:
        """Answer every prompt ``num_samples`` times."""
        ...
