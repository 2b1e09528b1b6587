"""Judge answers: find what a response states, compare it with the gold answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from stir_train.config.inputs import TaskConfig
from stir_train.config.stages import RolloutConfig
from stir_train.data.checkers import CheckerPool, check_math, search_pattern
from stir_train.data.choices import last_boolean, last_option, picked_boolean, picked_option
from stir_train.data.extraction import (
    MAX_SEARCHED_CHARACTERS,
    after_marker,
    final_part,
    statements,
)
from stir_train.data.numbers import Ambiguous, Number, answer_number, clean, last_number
from stir_train.distributed.launch import usable_cores
from stir_train.errors import DataError
from stir_train.types.rollout import Gold, Grade, Rollout

FALLBACK_CHARACTERS = 4000
"""How much of a text's end is searched for a number when no answer is stated."""
BATCH = 500
"""Responses per task of the pool, for graders that need no time-out of their own."""
MIN_POOLED = 4 * BATCH

Value = TypeVar("Value")


class Grader:
    """Grades responses of one task; owns the pool that its checks run in.

    Args:
        config: Names the grader and the answer marker.
        num_workers: Processes of the pool; None takes the usable cores.
    """

    def __init__(self, config: TaskConfig, *, num_workers: int | None = None) -> None:
        self.config = config
        self._pool = CheckerPool(num_workers or usable_cores())

    def close(self) -> None:
        """Stop the pool."""
        self._pool.close()

    def grade(
        self, texts: Sequence[str], golds: Sequence[Gold], truncated: Sequence[bool]
    ) -> list[Grade]:
        """Grade responses against gold answers; a truncated response is wrong, and marked.

        Raises:
            DataError: If a gold answer is none that this grader can compare with.
        """
        for gold in golds:
            require_gold(gold, self.config)
        if self.config.grader == "math":
            return self._grade_math(texts, golds, truncated)
        if self.config.grader == "regex":
            return self._grade_regex(texts, golds, truncated)
        items = list(zip(texts, golds, truncated, strict=True))
        if len(items) < MIN_POOLED:
            return grade_batch(self.config, items)
        batches = [(self.config, items[i : i + BATCH]) for i in range(0, len(items), BATCH)]
        return [
            grade
            for batch, grades in zip(batches, self._pool.map(grade_batch, batches), strict=True)
            for grade in (grades if isinstance(grades, list) else _failed(batch[1], grades))
        ]

    def _grade_math(
        self, texts: Sequence[str], golds: Sequence[Gold], truncated: Sequence[bool]
    ) -> list[Grade]:
        found = [_math_phrase(text, self.config.answer_marker) for text in texts]
        open_items = [i for i, phrase in enumerate(found) if phrase and not truncated[i]]
        pairs = [(golds[i].answer, found[i]) for i in open_items]
        verdicts = dict(zip(open_items, self._pool.map(check_math, pairs), strict=True))
        return [_judge(found[i], truncated[i], verdicts.get(i, False)) for i in range(len(texts))]

    def _grade_regex(
        self, texts: Sequence[str], golds: Sequence[Gold], truncated: Sequence[bool]
    ) -> list[Grade]:
        assert self.config.answer_regex is not None, "the config requires it"
        tails = [(self.config.answer_regex, text[-MAX_SEARCHED_CHARACTERS:]) for text in texts]
        grades = []
        results = self._pool.map(_search, tails)
        for result, gold, cut in zip(results, golds, truncated, strict=True):
            if isinstance(result, str):
                grades.append(Grade(correct=False, extracted="", reason=result))
                continue
            found = result[0] or ""
            grades.append(_judge(found, cut, _plain(found) == _plain(gold.answer)))
        return grades


def grade_batch(config: TaskConfig, items: Iterable[tuple[str, Gold, bool]]) -> list[Grade]:
    """Grade in this process, with a grader whose work is bounded."""
    grade_one = {
        "exact": _grade_exact,
        "numeric": _grade_numeric,
        "choice": _grade_choice,
        "boolean": _grade_boolean,
    }[config.grader]
    return [grade_one(text, gold, cut, config.answer_marker) for text, gold, cut in items]


def require_gold(gold: Gold, config: TaskConfig) -> None:
    """Check that a gold answer is one the grader can compare with.

    Raises:
        DataError: Saying what was expected.
    """
    answer = gold.answer.strip()
    if not answer:
        raise DataError("the gold answer is empty")
    if config.grader == "numeric":
        if not isinstance(answer_number(clean(answer)), Number):
            raise DataError(f"the gold answer {answer!r} is not one number")
    elif config.grader == "choice":
        if not isinstance(picked_option(answer, gold.choices), str):
            raise DataError(f"the gold answer {answer!r} names none of the options")
    elif config.grader == "boolean" and not isinstance(picked_boolean(answer), str):
        raise DataError(f"the gold answer {answer!r} is neither yes nor no")


def reward(grade: Grade, rollout: Rollout, config: RolloutConfig, *, max_new_tokens: int) -> float:
    """``1[correct] - length_penalty * num_tokens / max_new_tokens``."""
    share = len(rollout.token_ids) / max_new_tokens
    return float(grade.correct) - config.length_penalty * share


def _grade_exact(text: str, gold: Gold, truncated: bool, marker: str) -> Grade:
    found = after_marker(text, marker)
    return _judge(found, truncated, found == gold.answer.strip())


def _grade_numeric(text: str, gold: Gold, truncated: bool, marker: str) -> Grade:
    wanted = answer_number(clean(gold.answer))
    assert isinstance(wanted, Number), "checked by require_gold"

    def end(text: str) -> Number | None:
        return last_number(clean(final_part(text)[-FALLBACK_CHARACTERS:]))

    found, phrase = _first_read(text, marker, lambda p: answer_number(clean(p)), end)
    if isinstance(found, Ambiguous):
        return _ambiguous(phrase, truncated)
    if found is None:
        return _judge("", truncated, False)
    return _judge(str(found), truncated, found.equals(wanted))


def _grade_choice(text: str, gold: Gold, truncated: bool, marker: str) -> Grade:
    def read(phrase: str) -> str | Ambiguous | None:
        return picked_option(phrase, gold.choices)

    wanted = read(gold.answer)
    found, phrase = _first_read(
        text, marker, read, lambda text: last_option(final_part(text), gold.choices)
    )
    if isinstance(found, Ambiguous):
        return _ambiguous(phrase, truncated)
    return _judge(found or "", truncated, found == wanted)


def _grade_boolean(text: str, gold: Gold, truncated: bool, marker: str) -> Grade:
    wanted = picked_boolean(gold.answer)
    found, phrase = _first_read(
        text, marker, picked_boolean, lambda text: last_boolean(final_part(text))
    )
    if isinstance(found, Ambiguous):
        return _ambiguous(phrase, truncated)
    return _judge(found or "", truncated, found == wanted)


def _first_read(
    text: str,
    marker: str,
    read: Callable[[str], Value | Ambiguous | None],
    fallback: Callable[[str], Value | Ambiguous | None],
) -> tuple[Value | Ambiguous | None, str]:
    """Read the statements in order until one says something; without any, the end of the text.

    Returns what was read and the phrase it stood in (empty when it came from the end of the text).
    """
    stated = False
    for phrase in statements(text, marker):
        stated = True
        value = read(phrase)
        if value is not None:
            return value, phrase
    return (None if stated else fallback(text)), ""


def _math_phrase(text: str, marker: str) -> str:
    """The last statement, or the last line of a response that states nothing in so many words."""
    for phrase in statements(text, marker):
        return phrase.removesuffix(".").strip()
    lines = [line.strip() for line in final_part(text).splitlines() if line.strip()]
    return lines[-1][-500:] if lines else ""


def _search(pattern: str, text: str) -> tuple[str | None]:
    return (search_pattern(pattern, text),)


def _judge(found: str, truncated: bool, verdict: bool | str) -> Grade:
    """A grade for what was found; a verdict in words says why the checker has none."""
    if truncated:
        return Grade(correct=False, extracted=found, reason="truncated")
    if not found:
        return Grade(correct=False, extracted="", reason="no answer")
    if isinstance(verdict, str):
        return Grade(correct=False, extracted=found, reason=verdict)
    return Grade(correct=verdict, extracted=found, reason="equal" if verdict else "different")


def _ambiguous(phrase: str, truncated: bool) -> Grade:
    return Grade(
        correct=False, extracted=phrase[:200], reason="truncated" if truncated else "ambiguous"
    )


def _failed(items: Sequence[tuple[str, Gold, bool]], failure: str) -> list[Grade]:
    return [Grade(correct=False, extracted="", reason=failure) for _ in items]


def _plain(text: str) -> str:
    return " ".join(clean(text).casefold().split())
