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
from torch import Tensor

from stir_train.baselines.editing import biased, token_ids_of_words
from stir_train.baselines.interface import (
    EDITS,
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.baselines.probing import Progress, extend
from stir_train.types.rollout import Prompt, Rollout

WORDS = frozenset({"wait", "but", "alternatively"})
AMPLITUDES = (2.5, 5.0)
PERIOD_SHARES = (0.15, 0.5)
"""Of the token budget; the paper's is 0.15."""
NUM_PIECES = 16


class CyclicReflex:
    """A triangular wave on the logits of words of reflection."""

    name = "cyclic-reflex"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Which tokens are words of reflection."""
        found = token_ids_of_words(harvest.loaded, WORDS)
        if not found:
            raise NotApplicable("no token of the vocabulary is a word of reflection")
        return {"token_ids": torch.tensor(found)}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """Every amplitude and period."""
        return [
            {"amplitude": amplitude, "period": share}
            for amplitude in AMPLITUDES
            for share in PERIOD_SHARES
        ]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, piece by piece."""
        budget = answering.greedy.max_new_tokens
        width = max(1, round(float(setting["period"]) * budget / NUM_PIECES))
        where = torch.zeros(answering.loaded.model.config.get_text_config().vocab_size)
        where[parameters["token_ids"]] = float(setting["amplitude"])
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


def wave(periods: float) -> float:
    """The triangular wave of amplitude 1 after so many periods; it starts at 0, upwards."""
    phase = periods % 1
    if phase < 0.25:
        return 4 * phase
    return 2 - 4 * phase if phase < 0.75 else 4 * phase - 4
