"""Words of reflection favoured and disfavoured in turns (CyclicReflex, arXiv 2506.11077).

The paper's: a triangular wave is added to the logits of "wait", "but" and "alternatively": up from 0 to an
amplitude of 5 in a quarter of a period of 1,200 tokens, down to -5 and back to 0; its budget is 8,192 tokens. Ours:
amplitude and period are tuned, the period as a share of the run's token budget; the words count with any case and
space around them; the wave is constant over a sixteenth of a period, which makes no row of a batch depend on
the others, at the price of one pass more for each piece, which is counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from stir_train.baselines.editing import biased
from stir_train.baselines.interface import AnsweringContext, Setting
from stir_train.baselines.probing import Progress, extend
from stir_train.baselines.words import WordMethod
from stir_train.types.rollout import Prompt, Rollout

WORDS = frozenset({"wait", "but", "alternatively"})
GRID = [{"amplitude": height, "period": share} for height in (2.5, 5.0) for share in (0.15, 0.5)]
"""The period is a share of the token budget; the paper's is 0.15."""
NUM_PIECES = 16


def answer_under_wave(
    answering: AnsweringContext,
    token_ids: list[int],
    setting: Setting,
    prompts: Sequence[Prompt],
) -> list[Rollout]:
    """Greedy decoding, a sixteenth of a period at a time, with the words' logits raised by the wave there."""
    budget = answering.greedy.max_new_tokens
    width = max(1, round(float(setting["period"]) * budget / NUM_PIECES))
    where = torch.zeros(answering.loaded.model.config.get_text_config().vocab_size)
    where[token_ids] = float(setting["amplitude"])
    items = [Progress(prompt) for prompt in prompts]
    for piece, start in enumerate(range(0, budget, width)):
        going = [item for item in items if item.finish is None]
        if not going:
            break
        end = min(start + width, budget)
        until = dataclasses.replace(
            answering, greedy=dataclasses.replace(answering.greedy, max_new_tokens=end)
        )
        height = wave((piece + 0.5) / NUM_PIECES)
        with biased(answering.loaded, height * where):
            extend(until, going, ())
        for item in going:
            if item.finish == "length" and end < budget:
                item.finish = None  # the piece is full, not the budget
    return [item.rollout() for item in items]


CYCLIC_REFLEX = WordMethod("cyclic-reflex", WORDS, "a word of reflection", GRID, answer_under_wave)
"""A triangular wave on the logits of words of reflection."""


def wave(periods: float) -> float:
    """The triangular wave of amplitude 1 after so many periods; it starts at 0, upwards."""
    phase = periods % 1
    if phase < 0.25:
        return 4 * phase
    return 2 - 4 * phase if phase < 0.75 else 4 * phase - 4
