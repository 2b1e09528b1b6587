"""Leaving early when a trial answer is sure (DEER, arXiv 2504.15895).

The paper's: think until a monitor word, try an answer of at most 20 tokens there, and take it if the
mean probability of its tokens from the second on is above 0.95; else put the word back and go on, at
most ten times. Ours: the trial is asked for by the task's own answer marker, the threshold is
tuned, and the tokens of trials are counted, which the paper's release does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from stir_train.baselines.probing import Progress, accept, extend, may_try, try_answers
from stir_train.types.rollout import Prompt, Rollout

MONITORS = frozenset({"wait", "alternatively"})
THRESHOLDS = (0.9, 0.95, 0.99)
MAX_TRIALS = 10


class Deer:
    """Try an answer at every monitor word."""

    name = "deer"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Which tokens are monitor words."""
        found = token_ids_of_words(harvest.loaded, MONITORS)
        if not found:
            raise NotApplicable("no token of the vocabulary is a monitor word")
        return {"token_ids": torch.tensor(found)}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """Every threshold."""
        return [{"threshold": threshold} for threshold in THRESHOLDS]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, in as many rounds as the longest completion has monitor words."""
        items, monitors = [Progress(prompt) for prompt in prompts], parameters["token_ids"].tolist()
        while going := [item for item in items if item.finish is None]:
            judged = [item for item in going if may_try(answering, item, MAX_TRIALS)]
            extend(
                answering, [item for item in going if not may_try(answering, item, MAX_TRIALS)], ()
            )
            extend(answering, judged, monitors)
            paused = [item for item in judged if item.finish is None]
            trials = try_answers(answering, [(item, item.token_ids[:-1]) for item in paused])
            for item, trial in zip(paused, trials, strict=True):
                if not trial.truncated and confidence(trial) > float(setting["threshold"]):
                    item.token_ids = item.token_ids[:-1]  # the monitor word goes
                    accept(answering, item, trial)
        return [item.rollout() for item in items]


def confidence(trial: Rollout) -> float:
    """Mean probability of the tokens from the second on."""
    later = [math.exp(logprob) for logprob in trial.logprobs[1:]]
    return sum(later) / len(later) if later else 0.0
