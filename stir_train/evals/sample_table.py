"""Some completions for a dashboard, with every impulse marked where it went in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from stir_train.types.rollout import GradedRollout

NUM_PROBLEMS = 12
Decode = Callable[[Sequence[int]], str]


def sample_rows(
    answers: Mapping[str, Sequence[GradedRollout]], questions: Mapping[str, str], decode: Decode
) -> list[dict[str, str | int | bool]]:
    """The first few problems, each as every method answers it.

    Args:
        answers: By method, of the same problems in the same order.
        questions: By prompt id.
        decode: Token ids to text.
    """
    return [
        {
            "question": questions[answer.rollout.prompt_id],
            "method": name,
            "correct": answer.grade.correct,
            "tokens": len(answer.rollout.token_ids),
            "impulses": len(answer.rollout.impulses),
            "completion": marked_text(answer, decode),
        }
        for together in zip(*(given[:NUM_PROBLEMS] for given in answers.values()), strict=True)
        for name, answer in zip(answers, together, strict=True)
    ]


def marked_text(answer: GradedRollout, decode: Decode) -> str:
    """A completion's text with a mark behind every token at which an impulse was decided.

    A mark has the impulse's strength, its entry of the basis (none: a vector that is in no basis) and its
    block, as in ``[+2.0 entry 7 block 3]``.
    """
    ids, impulses = answer.rollout.token_ids, answer.rollout.impulses
    edges = [0, *(impulse.token_index + 1 for impulse in impulses), len(ids)]
    pieces = [decode(ids[start:end]) for start, end in pairwise(edges)]
    marks = [
        f"[{impulse.strength:+.1f}{f' entry {impulse.entry}' if impulse.entry >= 0 else ''} "
        f"block {impulse.block}]"
        for impulse in impulses
    ]
    return "".join(part for pair in zip(pieces, [*marks, ""], strict=True) for part in pair)
