"""A method about certain words: it is told which vocabulary items they are, and does not apply where there are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stir_train.baselines.editing import token_ids_of_words
from stir_train.baselines.interface import (
    EDITS,
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.generation.backend import Ability
from stir_train.types.rollout import Prompt, Rollout


@dataclass(frozen=True)
class WordMethod:
    """A `Baseline` whose parameters are the token ids of some words.

    Attributes:
        name: Its row of the results.
        words: In lower case; tokens count whatever their case, space and punctuation.
        role: What the words are to it, as in "a trigger word".
        grid: Its settings.
        respond: Answers prompts in order, given the token ids and a setting.
        needs: What it needs the backend to be able to do.
    """

    name: str
    words: frozenset[str]
    role: str
    grid: Sequence[Setting]
    respond: Callable[[AnsweringContext, list[int], Setting, Sequence[Prompt]], list[Rollout]]
    needs: frozenset[Ability] = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Which tokens are the words."""
        found = token_ids_of_words(harvest.loaded, self.words)
        if not found:
            raise NotApplicable(f"no token of the vocabulary is {self.role}")
        return {"token_ids": torch.tensor(found)}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """The grid, which no block is part of."""
        return list(self.grid)

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """What `respond` decodes, given the ids of the method's words."""
        return self.respond(answering, parameters["token_ids"].tolist(), setting, prompts)
