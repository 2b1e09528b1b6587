"""Fewer words of reflection the surer the answer is (CGRS, arXiv 2508.05337).

The paper's: at every delimiter try an answer; its certainty is one minus the mean entropy of its tokens
over ``log V``; until the next delimiter, trigger words are forbidden with probability
``max(0, (certainty - delta) / (1 - delta))``, delta 0.9. Ours: the draw is made once a segment, not
once a token, and counts from zero on the noise of the run; delta is tuned.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import nullcontext

from stir_train.baselines.editing import biased, forbidding
from stir_train.baselines.interface import AnsweringContext, Setting
from stir_train.baselines.probing import (
    Progress,
    extend,
    may_try,
    mean_entropies,
    try_answers,
)
from stir_train.baselines.words import WordMethod
from stir_train.types.rollout import Prompt, Rollout

TRIGGERS = frozenset({"wait", "but", "alternatively", "alternative", "hmm"})
GRID = [{"delta": delta} for delta in (0.5, 0.9)]
MAX_TRIALS = 40
"""After so many delimiters a completion goes on unprobed."""


def suppress_by_certainty(
    answering: AnsweringContext,
    token_ids: list[int],
    setting: Setting,
    prompts: Sequence[Prompt],
) -> list[Rollout]:
    """Greedy, in as many rounds as the longest completion has segments."""
    size = answering.loaded.model.config.get_text_config().vocab_size
    bias = forbidding(token_ids, size)
    items = [Progress(prompt) for prompt in prompts]
    suppressed = [False] * len(items)
    while any(item.finish is None for item in items):
        for flag in (False, True):
            going = [
                item
                for item, is_suppressed in zip(items, suppressed, strict=True)
                if item.finish is None and is_suppressed == flag
            ]
            probed = [item for item in going if may_try(answering, item, MAX_TRIALS)]
            free = [item for item in going if not may_try(answering, item, MAX_TRIALS)]
            with biased(answering.loaded, bias) if flag else nullcontext():
                extend(answering, probed, answering.delimiter_ids)
                extend(answering, free, ())
        paused = [i for i, item in enumerate(items) if item.finish is None]
        trials = try_answers(answering, [(items[i], items[i].token_ids) for i in paused])
        for i, entropy in zip(paused, mean_entropies(answering, trials), strict=True):
            items[i].forward_passes += 1  # the entropies are read in a pass of their own
            certainty = 1 - entropy / math.log(size)
            suppressed[i] = _draw(answering, items[i]) < probability(
                certainty, float(setting["delta"])
            )
    return [item.rollout() for item in items]


CGRS = WordMethod("cgrs", TRIGGERS, "a trigger word", GRID, suppress_by_certainty)
"""Certainty-guided suppression of triggers."""


def _draw(answering: AnsweringContext, item: Progress) -> float:
    return random.Random(f"{answering.seed}/{item.prompt.prompt_id}/{item.num_trials}").random()


def probability(certainty: float, delta: float) -> float:
    """Of suppression until the next delimiter."""
    return max(0.0, (certainty - delta) / (1 - delta))
