"""Decoding without words of reflection (NoWait, arXiv 2506.08343).

The paper's: its list of keywords, whose logits are set to a large negative number at every step.
Ours: a token counts if it is one of the words, whatever its case, space and punctuation; the paper
takes every token that contains one and sorts false ones out by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stir_train.baselines.editing import biased, forbidding, token_ids_of_words
from stir_train.baselines.interface import (
    EDITS,
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.types.rollout import Prompt, Rollout

KEYWORDS = frozenset(
    [
        "wait",
        "alternatively",
        "hmm",
        "but",
        "however",
        "alternative",
        "another",
        "check",
        "double-check",
        "oh",
        "maybe",
        "verify",
        "other",
        "again",
        "now",
        "ah",
        "any",
    ]
)


class NoWait:
    """Forbid the keywords."""

    name = "nowait"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Which tokens are forbidden."""
        found = token_ids_of_words(harvest.loaded, KEYWORDS)
        if not found:
            raise NotApplicable("no token of the vocabulary is one of the keywords")
        return {"token_ids": torch.tensor(found)}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """There is nothing to choose."""
        return [{}]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,  # noqa: ARG002 - the interface's
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy among the other tokens."""
        size = answering.loaded.model.config.get_text_config().vocab_size
        bias = forbidding(parameters["token_ids"].tolist(), size)
        return answering.answer(prompts, edit=biased(answering.loaded, bias))
