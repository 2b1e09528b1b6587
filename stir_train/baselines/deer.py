"""Leaving early when a trial answer is sure (DEER, arXiv 2504.15895).

The paper's: think until a monitor word, try an answer of at most 20 tokens there, and take it if the
mean probability of its tokens from the second on is above 0.95; else put the word back and go on, at
most ten times. Ours: the trial is asked for by the task's own answer marker, the threshold is
tuned, and the tokens of trials are counted, which the paper's release does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stir_train.baselines.interface import AnsweringContext, Setting
from stir_train.baselines.probing import Progress, accept, extend, may_try, try_answers
from stir_train.baselines.words import WordMethod
from stir_train.types.rollout import Prompt, Rollout

MONITORS = frozenset({"wait", "alternatively"})
GRID = [{"threshold": threshold} for threshold in (0.9, 0.95, 0.99)]
MAX_TRIALS = 10


def leave_when_sure(
    answering: AnsweringContext,
    token_ids: list[int],
    setting: Setting,
    prompts: Sequence[Prompt],
) -> list[Rollout]:
    """Greedy, in as many rounds as the longest completion has monitor words."""
    items = [Progress(prompt) for prompt in prompts]
    while going := [item for item in items if item.finish is None]:
        judged = [item for item in going if may_try(answering, item, MAX_TRIALS)]
        extend(answering, [item for item in going if not may_try(answering, item, MAX_TRIALS)], ())
        extend(answering, judged, token_ids)
        paused = [item for item in judged if item.finish is None]
        trials = try_answers(answering, [(item, item.token_ids[:-1]) for item in paused])
        for item, trial in zip(paused, trials, strict=True):
            if not trial.truncated and confidence(trial) > float(setting["threshold"]):
                accept(answering, item, item.token_ids[:-1], trial)  # the monitor word goes
    return [item.rollout() for item in items]


DEER = WordMethod("deer", MONITORS, "a monitor word", GRID, leave_when_sure)
"""Try an answer at every monitor word."""


def confidence(trial: Rollout) -> float:
    """Mean probability of the tokens from the second on."""
    later = [math.exp(logprob) for logprob in trial.logprobs[1:]]
    return sum(later) / len(later) if later else 0.0
