"""Judge answers: find what a response states, compare it with the gold answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from stir_train.config.import_path import is_import_path
from stir_train.config.inputs import TaskConfig
from stir_train.config.stages import RolloutConfig
from stir_train.data.checkers import CheckerPool, check_math, search_pattern
from stir_train.data.choices import last_boolean, last_option, picked_boolean, picked_option
from stir_train.data.extraction import (
    MAX_SEARCHED_CHARACTERS,
    Statement,
    after_marker,
    answer_parts,
    statements,
)
from stir_train.data.number_phrases import answer_number, last_number
from stir_train.data.numbers import Ambiguous, Number
from stir_train.data.own_grader import grade_own, load_grader
from stir_train.data.plain_text import clean
from stir_train.distributed.launch import usable_cores
from stir_train.errors import DataError
from stir_train.types.rollout import Gold, Grade, Rollout

FALLBACK_CHARACTERS = 4000
"""How much of a text's end is searched for a number when no answer is stated."""
BATCH = 500
"""Responses per task of the pool, for graders that need no time-out of their own."""
MIN_POOLED = 4 * BATCH

_ABOUT_THE_ANSWER = re.compile(
    r"\W*(?:(?:now|then|also|indeed|therefore|thus)\s+)?"
    r"(?:(?:rounded|verified|checked|confirmed|obtained|supported|based|expected|guaranteed|required)\b"
    r"|(?:correct|right|valid|consistent|unique|positive|negative)(?=\s*(?:[,.;!)]|for|since|because|as|and|$))"
    r"|between\b|an?\s+(?:\w+\s+)?(?:integer|number|fraction|multiple|decimal)\b)",
    re.IGNORECASE,
)
"""What follows "the answer is" where its value is not stated: "rounded to 2 decimals"."""
_FACTORIAL = re.compile(r"[0-9)}]\s*!(?!=)")
_GOES_ON = re.compile(r"[0-9]\s*(?:\.{2,}|…)\s*$")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Found(Generic[Value]):
    """What a response was found to answer.

    Attributes:
        value: As its grader reads it.
        phrase: Where it stood; empty when it came from the end of the text.
        had_marker: Whether the response marks an answer as the task asks for it.
    """

    value: Value | Ambiguous | None
    phrase: str
    had_marker: bool


class Grader:
    """Grades responses of one task; owns the pool that its checks run in.

    Args:
        config: Names the grader and the answer marker.
        num_workers: Processes of the pool; None takes the usable cores.
    """

    def __init__(self, config: TaskConfig, *, num_workers: int | None = None) -> None:
        self.config = config
        if is_import_path(config.grader):
            load_grader(config)  # says now, and not in a worker, what is wrong with it
        self._pool = CheckerPool(num_workers or usable_cores())

    def close(self) -> None:
        """Stop the worker processes that grade."""
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
        if is_import_path(self.config.grader):
            return self._grade_own(texts, golds, truncated)
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
        found = [_find(text, self.config, _whole, _last_line) for text in texts]
        open_items = [
            i
            for i, a in enumerate(found)
            if a.value and a.value != Ambiguous() and not truncated[i]
        ]
        pairs = [(golds[i].answer, str(found[i].value)) for i in open_items]
        verdicts = dict(zip(open_items, self._pool.map(check_math, pairs), strict=True))
        return [
            _judge_found(answer, truncated[i], verdicts.get(i, False))
            for i, answer in enumerate(found)
        ]

    def _grade_own(
        self, texts: Sequence[str], golds: Sequence[Gold], truncated: Sequence[bool]
    ) -> list[Grade]:
        task = self.config.model_dump_json()
        items = [(task, text, gold) for text, gold in zip(texts, golds, strict=True)]
        grades = []
        for grade, cut in zip(self._pool.map(grade_own, items), truncated, strict=True):
            known = Grade(False, "", grade) if isinstance(grade, str) else grade
            grades.append(replace(known, correct=False, reason="truncated") if cut else known)
        return grades

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
            same = _plain(found) == _plain(gold.answer)
            grades.append(_judge(found, cut, same, had_marker=bool(found)))
        return grades


def grade_batch(config: TaskConfig, items: Iterable[tuple[str, Gold, bool]]) -> list[Grade]:
    """Grade in this process, with a grader whose work is bounded: not `math`, `regex` or one's own."""
    grade_one = {
        "exact": _grade_exact,
        "numeric": _grade_numeric,
        "choice": _grade_choice,
        "boolean": _grade_boolean,
    }[config.grader]
    return [grade_one(text, gold, cut, config) for text, gold, cut in items]


def require_gold(gold: Gold, config: TaskConfig) -> None:
    """Check that a gold answer is one the grader can compare with.

    Raises:
        DataError: Saying what was expected.
    """
    answer = gold.answer.strip()
    if not answer:
        raise DataError("the gold answer is empty")
    if config.grader == "numeric":
        if _FACTORIAL.search(answer) or not isinstance(answer_number(clean(answer)), Number):
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


def _grade_exact(text: str, gold: Gold, truncated: bool, config: TaskConfig) -> Grade:
    found = after_marker(text, config.answer_marker)
    return _judge(found, truncated, found == gold.answer.strip(), had_marker=bool(found))


def _grade_numeric(text: str, gold: Gold, truncated: bool, config: TaskConfig) -> Grade:
    wanted = answer_number(clean(gold.answer))
    assert isinstance(wanted, Number), "checked by require_gold"
    found = _find(
        text,
        config,
        _stated_number,
        lambda part: last_number(clean(part[-FALLBACK_CHARACTERS:])),
    )
    number = found.value
    is_right = isinstance(number, Number) and number.equals(wanted)
    return _judge_found(found, truncated, is_right)


def _stated_number(statement: Statement) -> Number | Ambiguous | None:
    if statement.in_box and (_FACTORIAL.search(statement.text) or _GOES_ON.search(statement.text)):
        return Ambiguous()
    if not (statement.in_box or statement.is_marked) and _ABOUT_THE_ANSWER.match(statement.text):
        return None
    return answer_number(clean(statement.text))


def _grade_choice(text: str, gold: Gold, truncated: bool, config: TaskConfig) -> Grade:
    def read(phrase: str) -> str | Ambiguous | None:
        return picked_option(phrase, gold.choices)

    found = _find(
        text, config, lambda s: read(s.text), lambda part: last_option(part, gold.choices)
    )
    return _judge_found(found, truncated, found.value == read(gold.answer))


def _grade_boolean(text: str, gold: Gold, truncated: bool, config: TaskConfig) -> Grade:
    found = _find(text, config, lambda s: picked_boolean(s.text), last_boolean)
    return _judge_found(found, truncated, found.value == picked_boolean(gold.answer))


def _find(
    text: str,
    config: TaskConfig,
    read: Callable[[Statement], Value | Ambiguous | None],
    at_end: Callable[[str], Value | Ambiguous | None],
) -> Found[Value]:
    """Read the reply's statements in order until one says something; without any, its end.

    The thinking before a reply is read in the same way, where the reply holds no answer. Under
    ``answer_reading: marker`` only marked statements are read, and no text's end.
    """
    only_marked = config.answer_reading == "marker"
    had_marker = False
    for place, part in enumerate(answer_parts(text)):
        stated = list(statements(part, config.answer_marker))
        had_marker = had_marker or any(statement.is_marked for statement in stated)
        stated = [s for s in stated if s.is_marked or not only_marked]
        for statement in stated:
            value = Ambiguous() if statement.is_part else read(statement)
            if value is not None:
                return Found(value, statement.text, had_marker)
        if stated:
            break
        if place == 0 and not only_marked:
            value = at_end(part)
            if value is not None:
                return Found(value, "", had_marker)
    return Found(None, "", had_marker)


def _whole(statement: Statement) -> str:
    return statement.text.removesuffix(".").strip()


def _last_line(part: str) -> str | None:
    """The last line, if there is anything mathematical in it."""
    lines = [line.strip() for line in part.splitlines() if line.strip()]
    line = lines[-1][-500:] if lines else ""
    return line if re.search(r"[0-9$\\=]", line) else None


def _search(pattern: str, text: str) -> tuple[str | None]:
    return (search_pattern(pattern, text),)


def _judge_found(found: Found[Value], truncated: bool, is_right: bool | str) -> Grade:
    if isinstance(found.value, Ambiguous):
        return Grade(
            correct=False,
            extracted=found.phrase[:200],
            reason="truncated" if truncated else "ambiguous",
            had_marker=found.had_marker,
        )
    extracted = "" if found.value is None else str(found.value)
    return _judge(extracted, truncated, is_right, found.had_marker)


def _judge(found: str, truncated: bool, verdict: bool | str, had_marker: bool) -> Grade:
    """A grade for what was found; a verdict in words says why the checker has none."""
    if truncated:
        correct, reason = False, "truncated"
    elif not found:
        correct, reason = False, "no answer"
    elif isinstance(verdict, str):
        correct, reason = False, verdict
    else:
        correct, reason = verdict, "equal" if verdict else "different"
    return Grade(correct=correct, extracted=found, reason=reason, had_marker=had_marker)


def _failed(items: Sequence[tuple[str, Gold, bool]], failure: str) -> list[Grade]:
    return [Grade(correct=False, extracted="", reason=failure) for _ in items]


def _plain(text: str) -> str:
    return " ".join(clean(text).casefold().split())
