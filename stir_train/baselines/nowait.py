"""Decoding without words of reflection (NoWait, arXiv 2506.08343).

The paper's: its list of keywords, whose logits are set to a large negative number at every step.
Ours: a token counts if it is one of the words, whatever its case, space and punctuation; the paper
takes every token that contains one and sorts false ones out by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.baselines.editing import biased, forbidding
from stir_train.baselines.interface import AnsweringContext, Setting
from stir_train.baselines.words import WordMethod
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


def answer_without_words(
    answering: AnsweringContext,
    token_ids: list[int],
    setting: Setting,  # noqa: ARG001 - there is nothing to choose
    prompts: Sequence[Prompt],
) -> list[Rollout]:
    """Greedy among the other tokens."""
    size = answering.loaded.model.config.get_text_config().vocab_size
    bias = forbidding(token_ids, size)
    return answering.answer(prompts, edit=biased(answering.loaded, bias))


NO_WAIT = WordMethod("nowait", KEYWORDS, "one of the keywords", [{}], answer_without_words)
"""Forbid the keywords."""
