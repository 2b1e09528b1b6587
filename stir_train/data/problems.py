"""Read problems: from an embedded family, a local file, or a datasets hub id."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stir_train.config.stages import TaskConfig
from stir_train.errors import DataError

FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
CHOICE_LETTERS = "ABCDEFGHIJ"
GSM8K_ANSWER = "####"
MAX_LISTED = 8


@dataclass(frozen=True)
class SourceProblem:
    """A problem as its source states it.

    Attributes:
        question: Text, the options of a multiple-choice problem included.
        answer: Gold answer.
        content: What makes two problems the same; usually the question.
        kind: Label for breakdowns.
    """

    question: str
    answer: str
    content: str
    kind: str = ""

    @property
    def problem_id(self) -> str:
        """Hash of the normalised content."""
        return hashlib.sha256(normalise(self.content).encode()).hexdigest()[:16]


def normalise(text: str) -> str:
    """Fold case, Unicode form and white space, so that trivial variants are one question."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_source(config: TaskConfig) -> list[SourceProblem]:
    """Read every problem of a local file or folder, or of a hub dataset.

    Raises:
        DataError: If the source is missing or empty, lacks a configured column, or has malformed
            rows (all listed at once).
    """
    assert config.source is not None, "embedded families do not come from a source"
    rows = list(_rows(config, config.source))
    if not rows:
        raise DataError(f"task.source: {config.source} holds no rows")
    problems, bad = [], []
    for number, row in enumerate(rows, start=1):
        try:
            problems.append(_read_row(config, row))
        except DataError as error:
            bad.append(f"row {number}: {error}")
    if bad:
        listed = "\n".join(f"  - {line}" for line in bad[:MAX_LISTED])
        more = f"\n  - and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise DataError(
            f"{config.source}: {len(bad)} of {len(rows)} rows are unusable\n{listed}{more}"
        )
    return problems


def _rows(config: TaskConfig, source: str) -> Iterable[Mapping[str, Any]]:
    import datasets  # noqa: PLC0415 - heavy, and embedded families do not need it

    path = Path(source)
    looks_local = path.exists() or path.suffix in FILE_FORMATS or source.startswith((".", "/"))
    if looks_local and not path.exists():
        raise DataError(f"task.source: no file or folder {source}")
    datasets.disable_progress_bars()
    try:
        if not looks_local:
            return datasets.load_dataset(
                source, config.subset, revision=config.revision, split=config.hub_split
            )
        files = [path] if path.is_file() else sorted(path.glob(f"{config.hub_split}*"))
        files = [file for file in files if file.suffix in FILE_FORMATS]
        if not files:
            raise DataError(
                f"task.source: {source} has no {config.hub_split}*{{{','.join(FILE_FORMATS)}}} file"
            )
        return datasets.load_dataset(
            FILE_FORMATS[files[0].suffix], data_files=[str(f) for f in files], split="train"
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"task.source: cannot read {source}: {error}") from error


def _read_row(config: TaskConfig, row: Mapping[str, Any]) -> SourceProblem:
    for field in (config.question_field, config.answer_field, config.choices_field):
        if field is not None and field not in row:
            raise DataError(f"no column {field!r}; columns: {', '.join(row)}")
    question, answer = row[config.question_field], row[config.answer_field]
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{config.question_field} is empty or not text: {question!r}")
    answer = "" if answer is None else str(answer).strip()
    if GSM8K_ANSWER in answer:
        answer = answer.rpartition(GSM8K_ANSWER)[2].strip()
    if config.choices_field is not None:
        question, answer = _with_choices(question, answer, row[config.choices_field])
    if not answer:
        raise DataError(f"{config.answer_field} is empty")
    return SourceProblem(question=question, answer=answer, content=question)


def _with_choices(question: str, answer: str, choices: Any) -> tuple[str, str]:
    """Append lettered options; turn the gold label into its letter."""
    labels, texts = CHOICE_LETTERS, choices
    if isinstance(choices, Mapping):
        labels, texts = choices["label"], choices["text"]
    if not isinstance(texts, list) or not texts:
        raise DataError(f"the options are not a list: {choices!r}")
    letters = CHOICE_LETTERS[: len(texts)]
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    label_list = [str(label) for label in labels]
    if answer not in label_list:
        raise DataError(f"gold label {answer!r} is not among {label_list}")
    return f"{question}\n{listed}", letters[label_list.index(answer)]
