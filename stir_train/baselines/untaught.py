"""A method that takes nothing from the harvest split: a name, a grid, and a function that answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from stir_train.baselines.interface import AnsweringContext, HarvestData, Parameters, Setting
from stir_train.generation.backend import Ability
from stir_train.types.rollout import Prompt, Rollout


@dataclass(frozen=True)
class Untaught:
    """A `Baseline` without parameters.

    Attributes:
        name: Its row of the results.
        grid: Its settings.
        respond: Answers prompts under one of them, in order.
        needs: What it needs the backend to be able to do.
    """

    name: str
    grid: Sequence[Setting]
    respond: Callable[[AnsweringContext, Setting, Sequence[Prompt]], list[Rollout]]
    needs: frozenset[Ability] = frozenset()

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:  # noqa: ARG002 - the interface's
        """Nothing is learned: no parameters."""
        return {}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """The grid, which no block is part of."""
        return list(self.grid)

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,  # noqa: ARG002 - the interface's
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """What `respond` decodes; there are no parameters to pass on."""
        return self.respond(answering, setting, prompts)
