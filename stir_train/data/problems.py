"""Read problems from local files or hub datasets, in the schemas found in the wild."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any

from stir_train.config.import_path import is_import_path, load_object
from stir_train.config.inputs import TaskConfig
from stir_train.config.tasks import REASONING_GYM
from stir_train.data.boxes import boxed
from stir_train.data.checkers import CheckerPool, is_mathematics
from stir_train.data.choices import LETTERS
from stir_train.data.grading import require_gold
from stir_train.data.own_grader import load_grader
from stir_train.data.reasoning_gym import reasoning_gym_problems
from stir_train.data.sources import NumberText, SourceRow, source_rows
from stir_train.distributed.launch import usable_cores
from stir_train.errors import DataError, StirError
from stir_train.types.rollout import Gold

HASHES = "####"
MAX_LISTED = 20
_BEFORE_UNIT = re.compile(r"\s*\([^()]*\)\s*$")
_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?|\\frac\{-?[0-9]{1,9}\}\{[0-9]{1,9}\}")


@dataclass(frozen=True)
class SourceProblem:
    """A problem as its source states it.

    Attributes:
        question: Text, the options of a multiple-choice problem included.
        answer: Gold answer.
        content: What makes two problems the same; usually the question.
        kind: Label for breakdowns.
        choices: The texts of the options.
        place: Where it stands, for messages: ``file:line``.
        is_test: Whether its dataset tests with it (`task.test_split`).
    """

    question: str
    answer: str
    content: str
    kind: str = ""
    choices: tuple[str, ...] = ()
    place: str = dataclasses.field(default="", compare=False)
    is_test: bool = False

    @cached_property
    def problem_id(self) -> str:
        """Hash of the normalised content."""
        return hashlib.sha256(normalise(self.content).encode()).hexdigest()[:16]


def normalise(text: str) -> str:
    """Fold case, Unicode form and white space, so that trivial variants are one question."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_source(config: TaskConfig) -> list[SourceProblem]:
    """Read every problem of every source.

    Raises:
        DataError: If a source is missing or empty, or has rows that cannot be used: malformed,
            lacking a column, with a gold answer that the grader cannot read, or asking a question
            that another row answers otherwise. All of them are listed at once. Rows that
            `task.only_answers` leaves out are neither.
    """
    return _read(config)[0]


def count_left_out(config: TaskConfig) -> int:
    """How many rows of its sources `task.only_answers` leaves out.

    Raises:
        DataError: As `read_source`.
    """
    return _read(config)[1]


def _read(config: TaskConfig) -> tuple[list[SourceProblem], int]:
    """The problems, and how many rows were left out."""
    if is_import_path(config.grader):
        load_grader(config)
    problems: list[SourceProblem] = []
    bad: list[str] = []
    answered: dict[str, tuple[str, SourceProblem]] = {}
    golds: list[tuple[str, str]] = []
    num_rows = num_left_out = 0
    for source in config.sources:
        for row in _rows(config, source):
            num_rows += 1
            here = row.place if isinstance(row, SourceRow) else row[0]
            try:
                problem = _problem_of(row, config)
            except DataError as error:
                bad.append(f"{here}: {error}")
                continue
            if problem is None:
                num_left_out += 1
                continue
            golds.append((here, problem.answer))
            place, before = answered.setdefault(problem.problem_id, (here, problem))
            if before.answer != problem.answer:
                bad.append(
                    f"{here}: answers {problem.answer!r}, but {place} has the same question "
                    f"with {before.answer!r}"
                )
            problems.append(replace(problem, place=here))
    if config.grader == "math":
        bad += _unreadable_mathematics(golds)
    _require_usable(bad, num_rows)
    if num_left_out == num_rows > 0:
        raise DataError(f"task.only_answers: no row's gold answer matches {config.only_answers!r}")
    if not problems:
        raise DataError(f"task.source: {', '.join(config.sources)} holds no rows")
    return problems, num_left_out


def _require_usable(bad: Sequence[str], num_rows: int) -> None:
    if bad:
        listed = "\n".join(f"  - {line}" for line in bad[:MAX_LISTED])
        more = f"\n  - and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise DataError(f"{len(bad)} of {num_rows} rows are unusable\n{listed}{more}")


def _rows(config: TaskConfig, source: str) -> Iterator[SourceRow | tuple[str, SourceProblem]]:
    """The rows of a source, or the finished problems of a loader of the user's own."""
    if source.startswith(REASONING_GYM):
        for number, values in enumerate(reasoning_gym_problems(config, source), start=1):
            yield SourceRow(f"{source} problem {number}", values)
        return
    if not is_import_path(source):
        yield from source_rows(config, source)
        return
    load = load_object(source, kind="task.source")
    if not callable(load):
        raise DataError(f"task.source: {source} is no function but {type(load).__name__}")
    try:
        items = list(load(config))
    except StirError:
        raise
    except Exception as error:  # code that is not ours raises what it likes
        raise DataError(f"task.source: {source} failed: {type(error).__name__}: {error}") from error
    for number, item in enumerate(items, start=1):
        place = f"{source} problem {number}"
        if isinstance(item, SourceProblem):
            yield place, item
        elif isinstance(item, Mapping):
            yield SourceRow(place, item)
        else:
            kind = type(item).__name__
            yield SourceRow(place, {}, f"neither a SourceProblem nor a mapping but {kind}")


def _problem_of(
    row: SourceRow | tuple[str, SourceProblem], config: TaskConfig
) -> SourceProblem | None:
    """A row as a problem that can be posed, graded and written down; None if `task.only_answers` leaves it out.

    Raises:
        DataError: Saying why it cannot.
    """
    if isinstance(row, SourceRow) and row.error:
        raise DataError(row.error)
    problem = _read_row(config, row.values) if isinstance(row, SourceRow) else row[1]
    for name, text in (
        ("question", problem.question),
        ("gold answer", problem.answer),
        ("kind", problem.kind),
        *(("option", choice) for choice in problem.choices),
    ):
        require_text(name, text)
        if "\0" in text:
            raise DataError(f"the {name} holds a NUL character: {text!a:.80}")
    if config.only_answers is not None and not re.fullmatch(config.only_answers, problem.answer):
        return None
    require_gold(Gold(problem.answer, problem.choices, problem.question), config)
    return problem


def require_text(name: str, text: Any) -> None:
    """Refuse what is no text, or none that can be written.

    Raises:
        DataError: Calling it by its name.
    """
    if not isinstance(text, str):
        raise DataError(f"the {name} is not text but {type(text).__name__}")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise DataError(f"the {name} holds half a character (a lone surrogate): {text!a:.80}")


def _read_row(config: TaskConfig, row: Mapping[str, Any]) -> SourceProblem:
    stem = _column(row, config.question_fields, "question_fields")
    if not isinstance(stem, str) or isinstance(stem, NumberText) or not stem.strip():
        raise DataError(f"the question is empty or not text: {stem!r:.80}")
    held = _column(row, config.answer_fields, "answer_fields")
    answer = _gold_answer(gold_as_written(held, config).strip(), config)
    question = stem
    choices: tuple[str, ...] = ()
    if config.choices_fields:
        options = _column(row, config.choices_fields, "choices_fields")
        question, answer, choices = _with_choices(question, answer, options)
    kinds = [field for field in config.kind_fields if _find(row, field) is not None]
    return SourceProblem(
        question=question,
        answer=answer,
        content=question,
        kind=str(_find(row, kinds[0])) if kinds else "",
        choices=choices,
    )


def gold_as_written(held: Any, config: TaskConfig) -> str:
    """A gold answer as text; only what has one way of being written is turned into it.

    Raises:
        DataError: If it is a list, an object, not a number, or true or false for another grader than ``boolean``.
    """
    if isinstance(held, bool):
        if config.grader != "boolean":
            raise DataError(f"the gold answer is {str(held).lower()}, not text; write it as text")
        return str(held).lower()
    if isinstance(held, str):
        return str(held)
    if isinstance(held, int | Decimal) or (isinstance(held, float) and math.isfinite(held)):
        return str(held)
    if held is None:
        return ""
    raise DataError(f"the gold answer is a {type(held).__name__}, not text: {held!r:.80}")


def _unreadable_mathematics(golds: Sequence[tuple[str, str]]) -> list[str]:
    """Say which gold answers math-verify cannot read; it would compare them as bare text."""
    unsure = [(place, gold) for place, gold in golds if not _PLAIN_NUMBER.fullmatch(gold)]
    if not unsure:
        return []
    with closing(CheckerPool(usable_cores())) as pool:
        readable = pool.map(is_mathematics, [(gold,) for _, gold in unsure])
    return [
        f"{place}: the gold answer {gold!r} cannot be read as mathematics"
        for (place, gold), verdict in zip(unsure, readable, strict=True)
        if verdict is not True
    ]


def _column(row: Mapping[str, Any], fields: Sequence[str], setting: str) -> Any:
    for field in fields:
        parts = [_find(row, part) for part in field.split("+")]
        if all(part is not None for part in parts):
            return parts[0] if len(parts) == 1 else " ".join(str(part).strip() for part in parts)
    if any(_present(row, field) for field in fields):
        raise DataError(f"{' / '.join(fields)} is empty")
    raise DataError(
        f"none of the columns {', '.join(fields)} (task.{setting}); columns: {', '.join(row)}"
    )


def _find(row: Mapping[str, Any], field: str) -> Any:
    """The value at a column or a dotted path; None where there is none."""
    if field in row:
        return row[field]
    value: Any = row
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _present(row: Mapping[str, Any], field: str) -> bool:
    return all(part.split(".")[0] in row for part in field.split("+"))


def _gold_answer(held: str, config: TaskConfig) -> str:
    form = config.answer_format
    if form == "after_hashes" or (form == "auto" and HASHES in held):
        before, found, after = held.rpartition(HASHES)
        # Some variants keep the final answer alone, without its derivation.
        if not found and "\n" in before + after:
            raise DataError(f"the answer has no {HASHES}: {held[-80:]!r}")
        return after.strip()
    if form == "before_unit":
        return _BEFORE_UNIT.sub("", held)
    is_solution = config.grader == "math" and "\n" in held
    if form == "boxed" or (form == "auto" and ("\\boxed" in held or is_solution)):
        content = boxed(held)
        if content is None:
            raise DataError(f"the answer has no \\boxed{{}}: {held[-80:]!r}")
        return content
    return held


def _with_choices(question: str, answer: str, options: Any) -> tuple[str, str, tuple[str, ...]]:
    """Append lettered options; turn the gold label (or index, or text) into its letter."""
    labels, texts = _labels_and_texts(options)
    letters = LETTERS[: len(texts)]
    if len(texts) > len(LETTERS):
        raise DataError(f"{len(texts)} options; at most {len(LETTERS)} are supported")
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    if answer in labels:
        letter = letters[labels.index(answer)]
    elif texts.count(answer) == 1:
        letter = letters[texts.index(answer)]
    else:
        raise DataError(f"gold label {answer!r} is not among {labels}")
    return f"{question}\n{listed}", letter, tuple(texts)


def _labels_and_texts(options: Any) -> tuple[list[str], list[str]]:
    """Options as a dict of two lists, a list of dicts, or a list of texts."""
    if isinstance(options, Mapping) and {"label", "text"} <= set(options):
        labels, texts = list(options["label"]), list(options["text"])
    elif isinstance(options, list) and options and all(isinstance(o, Mapping) for o in options):
        if not all({"label", "text"} <= set(option) for option in options):
            raise DataError(f"the options lack label or text: {options!r}")
        labels, texts = [o["label"] for o in options], [o["text"] for o in options]
    elif isinstance(options, list) and all(isinstance(option, str) for option in options):
        labels, texts = list(LETTERS[: len(options)]), options
    else:
        raise DataError(f"the options are neither a list nor labels with texts: {options!r}")
    if len(labels) != len(texts) or not texts:
        raise DataError(f"{len(labels)} labels for {len(texts)} options")
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"the options are not all text: {texts!r:.80}")
    return [str(label) for label in labels], [str(text) for text in texts]
