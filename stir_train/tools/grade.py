"""Grade a file of responses: one JSON line in, the same line with its grade out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from stir_train.config.inputs import TaskConfig
from stir_train.data.grading import Grader, require_gold
from stir_train.data.problems import gold_as_written, require_text
from stir_train.data.sources import NumberText, without_repeats
from stir_train.errors import DataError
from stir_train.types.rollout import Gold

BATCH_LINES = 10_000
"""Lines held at a time."""
MAX_LISTED = 20


@dataclass(frozen=True)
class ResponseLine:
    """A parsed line: its own keys, and what is graded."""

    values: dict[str, Any]
    response: str
    gold: Gold
    truncated: bool


def grade_file(
    task: TaskConfig, path: Path, output: TextIO, *, num_workers: int | None
) -> Counter[str]:
    """Write every line of ``path`` with ``extracted``, ``correct`` and ``reason`` added.

    All lines are checked before the first is graded.

    Returns:
        How many lines got each reason.

    Raises:
        DataError: Listing every line that cannot be graded.
    """
    bad: list[str] = []
    for _ in _lines(path, task, bad):
        pass
    if bad:
        listed = "\n".join(f"  - {line}" for line in bad[:MAX_LISTED])
        more = f"\n  - and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise DataError(f"{len(bad)} lines cannot be graded\n{listed}{more}")
    reasons: Counter[str] = Counter()
    with closing(Grader(task, num_workers=num_workers)) as grader:
        for batch in _batches(_lines(path, task, bad)):
            grades = grader.grade(
                [line.response for line in batch],
                [line.gold for line in batch],
                [line.truncated for line in batch],
            )
            for line, grade in zip(batch, grades, strict=True):
                reasons[grade.reason] += 1
                graded = {
                    **line.values,
                    "extracted": grade.extracted,
                    "correct": grade.correct,
                    "reason": grade.reason,
                    "had_marker": grade.had_marker,
                }
                output.write(json.dumps(graded, ensure_ascii=False) + "\n")
    return reasons


def _lines(path: Path, task: TaskConfig, bad: list[str]) -> Iterator[ResponseLine]:
    """Parse line by line; what cannot be graded is named in ``bad``."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _parse(line, task)
            except DataError as error:
                bad.append(f"{path}:{number}: {error}")


def _parse(line: bytes, task: TaskConfig) -> ResponseLine:
    try:
        values = json.loads(line, object_pairs_hook=without_repeats)
        written = json.loads(line, parse_int=NumberText, parse_float=NumberText)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"not a JSON object but {type(values).__name__}")
    missing = {"response", "answer"} - set(values)
    if missing:
        raise DataError(f"no {' and no '.join(sorted(missing))}; keys: {', '.join(values)}")
    response, choices = values["response"], values.get("choices", [])
    truncated = values.get("truncated", False)
    if not isinstance(choices, list):
        raise DataError("choices is not a list of texts")
    if not isinstance(truncated, bool):
        raise DataError(f"truncated is neither true nor false: {truncated!r:.80}")
    answer, question = gold_as_written(written["answer"], task), values.get("question", "")
    texts = [("response", response), ("gold answer", answer), ("question", question)]
    texts += [(key, value) for key, value in values.items() if isinstance(value, str)]
    for name, text in (*texts, *(("option", choice) for choice in choices)):
        require_text(name, text)
    gold = Gold(answer, tuple(choices), question)
    require_gold(gold, task)
    return ResponseLine(values, response, gold, truncated)


def _batches(lines: Iterable[ResponseLine]) -> Iterator[Sequence[ResponseLine]]:
    batch: list[ResponseLine] = []
    for line in lines:
        batch.append(line)
        if len(batch) == BATCH_LINES:
            yield batch
            batch = []
    if batch:
        yield batch
