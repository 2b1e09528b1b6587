"""Read problems from local files or hub datasets, in the schemas found in the wild."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stir_train.config.inputs import TaskConfig
from stir_train.data.choices import LETTERS
from stir_train.data.extraction import boxed
from stir_train.data.grading import require_gold
from stir_train.errors import DataError
from stir_train.types.rollout import Gold

FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
HASHES = "####"
MAX_LISTED = 20


@dataclass(frozen=True)
class SourceProblem:
    """A problem as its source states it.

    Attributes:
        question: Text, the options of a multiple-choice problem included.
        answer: Gold answer.
        content: What makes two problems the same; usually the question.
        kind: Label for breakdowns.
        choices: The texts of the options.
    """

    question: str
    answer: str
    content: str
    kind: str = ""
    choices: tuple[str, ...] = ()

    @property
    def problem_id(self) -> str:
        """Hash of the normalised content."""
        return hashlib.sha256(normalise(self.content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SourceRow:
    """A row and where it stands, as ``file:line`` or ``dataset row N``; or why it is none."""

    place: str
    values: Mapping[str, Any]
    error: str = ""


def normalise(text: str) -> str:
    """Fold case, Unicode form and white space, so that trivial variants are one question."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_source(config: TaskConfig) -> list[SourceProblem]:
    """Read every problem of every source.

    Raises:
        DataError: If a source is missing or empty, or has rows that cannot be used: malformed,
            lacking a column, with a gold answer that the grader cannot read, or asking a question
            that another row answers otherwise. All of them are listed at once.
    """
    problems: list[SourceProblem] = []
    bad: list[str] = []
    answered: dict[str, tuple[str, SourceProblem]] = {}
    num_rows = 0
    for source in config.sources:
        for row in _rows(config, source):
            num_rows += 1
            try:
                if row.error:
                    raise DataError(row.error)
                problem = _read_row(config, row.values)
            except DataError as error:
                bad.append(f"{row.place}: {error}")
                continue
            place, before = answered.setdefault(problem.problem_id, (row.place, problem))
            if before.answer != problem.answer:
                bad.append(
                    f"{row.place}: answers {problem.answer!r}, but {place} has the same question "
                    f"with {before.answer!r}"
                )
            problems.append(problem)
    if bad:
        listed = "\n".join(f"  - {line}" for line in bad[:MAX_LISTED])
        more = f"\n  - and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise DataError(f"{len(bad)} of {num_rows} rows are unusable\n{listed}{more}")
    if not problems:
        raise DataError(f"task.source: {', '.join(config.sources)} holds no rows")
    return problems


def _rows(config: TaskConfig, source: str) -> Iterator[SourceRow]:
    path = Path(source)
    looks_local = path.exists() or path.suffix in FILE_FORMATS or source.startswith((".", "/"))
    if not looks_local:
        yield from _hub_rows(config, source)
        return
    if not path.exists():
        raise DataError(f"task.source: no file or folder {source}")
    files = [path] if path.is_file() else _files_of_split(path, config.hub_split)
    for file in files:
        yield from _file_rows(file)


def _files_of_split(folder: Path, hub_split: str) -> list[Path]:
    """The files whose name begins with a split's name, for each split of ``a+b``."""
    files: list[Path] = []
    for split in hub_split.split("+"):
        found = [f for f in sorted(folder.glob(f"{split.strip()}*")) if f.suffix in FILE_FORMATS]
        if not found:
            held = ", ".join(sorted(f.name for f in folder.iterdir())) or "nothing"
            raise DataError(
                f"task.source: {folder} has no {split.strip()}*{{{','.join(FILE_FORMATS)}}} file; "
                f"it holds {held}"
            )
        files += found
    return files


def _file_rows(file: Path) -> Iterator[SourceRow]:
    if file.suffix == ".jsonl":
        yield from _jsonl_rows(file)
        return
    import datasets  # noqa: PLC0415 - heavy, and embedded families do not need it

    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(
            FILE_FORMATS[file.suffix], data_files=[str(file)], split="train"
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"task.source: cannot read {file}: {error}") from error
    for number, row in enumerate(table, start=1):
        yield SourceRow(f"{file} row {number}", row)


def _jsonl_rows(file: Path) -> Iterator[SourceRow]:
    """Line by line, so that a bad line has a number and the others are still read."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{file}:{number}"
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield SourceRow(place, {}, f"not JSON: {error}")
                continue
            if isinstance(values, dict):
                yield SourceRow(place, values)
            else:
                yield SourceRow(place, {}, f"not a JSON object but {type(values).__name__}")


def _hub_rows(config: TaskConfig, source: str) -> Iterator[SourceRow]:
    import datasets  # noqa: PLC0415 - heavy, and embedded families do not need it

    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(
            source, config.subset, revision=config.revision, split=config.hub_split
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"task.source: cannot read {source} from the hub or its cache: {error}; "
            "without a network, set task.source to a local copy"
        ) from error
    for number, row in enumerate(table, start=1):
        yield SourceRow(f"{source} row {number}", row)


def _read_row(config: TaskConfig, row: Mapping[str, Any]) -> SourceProblem:
    stem = _column(row, config.question_fields, "question_fields")
    if not isinstance(stem, str) or not stem.strip():
        raise DataError(f"the question is empty or not text: {stem!r}")
    held = _column(row, config.answer_fields, "answer_fields")
    answer = _gold_answer("" if held is None else str(held).strip(), config)
    question = stem
    choices: tuple[str, ...] = ()
    if config.choices_fields:
        options = _column(row, config.choices_fields, "choices_fields")
        question, answer, choices = _with_choices(question, answer, options)
    require_gold(Gold(answer, choices), config)
    kinds = [field for field in config.kind_fields if _find(row, field) is not None]
    return SourceProblem(
        question=question,
        answer=answer,
        content=question,
        kind=str(_find(row, kinds[0])) if kinds else "",
        choices=choices,
    )


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
    return [str(label) for label in labels], [str(text) for text in texts]
