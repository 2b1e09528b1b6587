"""Stop when answers tried along the way agree (answer convergence, arXiv 2506.02536).

The paper's: after each sentence of the thinking an answer is asked for at once, and the thinking ends when several
in a row are the same. Ours: answers are tried at delimiters, agree in the grader's normal form, how many must
agree is tuned, and the tokens of trials are counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.baselines.interface import AnsweringContext, Setting
from stir_train.baselines.probing import Progress, accept, extend, may_try, try_answers
from stir_train.baselines.untaught import Untaught
from stir_train.types.rollout import Prompt, Rollout

GRID = [{"agreeing": count} for count in (2, 3, 5)]
MAX_TRIALS = 40
"""After so many delimiters a completion goes on unasked."""


def stop_where_answers_agree(
    answering: AnsweringContext, setting: Setting, prompts: Sequence[Prompt]
) -> list[Rollout]:
    """Greedy, in as many rounds as the longest completion has delimiters."""
    needed = int(setting["agreeing"])
    items = [Progress(prompt) for prompt in prompts]
    answers: list[list[str]] = [[] for _ in items]
    while going := [i for i, item in enumerate(items) if item.finish is None]:
        asked = [i for i in going if may_try(answering, items[i], MAX_TRIALS)]
        extend(answering, [items[i] for i in going if i not in asked], ())
        extend(answering, [items[i] for i in asked], answering.delimiter_ids)
        paused = [i for i in asked if items[i].finish is None]
        trials = try_answers(answering, [(items[i], items[i].token_ids) for i in paused])
        found = _answers_of(answering, [items[i].prompt for i in paused], trials)
        for i, trial, answer in zip(paused, trials, found, strict=True):
            answers[i].append(answer)
            if has_converged(answers[i], needed):
                accept(answering, items[i], items[i].token_ids, trial)
    return [item.rollout() for item in items]


ANSWER_CONVERGENCE = Untaught("answer-convergence", GRID, stop_where_answers_agree)
"""Try an answer at every delimiter, until some in a row agree."""


def has_converged(answers: Sequence[str], needed: int) -> bool:
    """Whether the last ``needed`` answers are the same, and are answers."""
    last = answers[-needed:]
    return len(last) == needed and bool(last[0]) and len(set(last)) == 1


def _answers_of(
    answering: AnsweringContext, prompts: Sequence[Prompt], trials: Sequence[Rollout]
) -> list[str]:
    """What was answered; empty where a trial did not end."""
    asked = answering.answer_prompt
    texts = [answering.loaded.decode((*asked, *trial.token_ids)) for trial in trials]
    found = answering.answers_of(prompts, texts)
    return ["" if t.truncated else a for t, a in zip(trials, found, strict=True)]
