"""Read the rows of local files, as they are written, and of hub datasets.

Numbers in JSON, and everything in CSV, stay the text that stands in the file: nothing is guessed
from a column's look. What cannot be read is an error of ours that names file and line or row.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stir_train.config.inputs import FILE_SUFFIXES, TaskConfig
from stir_train.errors import DataError

FILE_FORMATS = FILE_SUFFIXES
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz")


class NumberText(str):
    """A number as a JSON file writes it."""


@dataclass(frozen=True)
class SourceRow:
    """A row and where it stands, as ``file:line`` or ``dataset row N``; or why it is none."""

    place: str
    values: Mapping[str, Any]
    error: str = ""


def source_rows(config: TaskConfig, source: str) -> Iterator[SourceRow]:
    """Yield the rows of a local file or folder, or of a hub dataset.

    Raises:
        DataError: If the source is missing, or a file cannot be read at all.
    """
    path = Path(source)
    suffixes = (*FILE_FORMATS, *COMPRESSED)
    is_local = path.suffix.lower() in suffixes or source.startswith((".", "/")) or path.exists()
    if not is_local:
        yield from _hub_rows(config, source)
        return
    if not path.exists():
        raise DataError(f"task.source: no file or folder {source}")
    for file in _files_of_split(path, config.hub_split) if path.is_dir() else [path]:
        try:
            yield from _file_rows(file)
        except OSError as error:
            raise DataError(
                f"task.source: {file} cannot be read: {error.strerror or error}"
            ) from error


def _files_of_split(folder: Path, hub_split: str) -> list[Path]:
    """The files whose name begins with a split's name, for each split of ``a+b``."""
    files: list[Path] = []
    for split in hub_split.split("+"):
        named = sorted(folder.glob(f"{split.strip()}*"))
        found = [file for file in named if file.suffix.lower() in FILE_FORMATS]
        if not found:
            held = ", ".join(sorted(f.name for f in folder.iterdir())) or "nothing"
            raise DataError(
                f"task.source: {folder} has no {split.strip()}*{{{','.join(FILE_FORMATS)}}} file; "
                f"it holds {held}"
            )
        files += found
    return files


def _file_rows(file: Path) -> Iterator[SourceRow]:
    suffix = file.suffix.lower()
    if suffix in COMPRESSED:
        raise DataError(f"task.source: {file} is compressed; unpack it and name the file inside")
    if suffix not in FILE_FORMATS:
        raise DataError(
            f"task.source: {file} ends in {suffix or 'no suffix'}; known are {', '.join(FILE_FORMATS)}"
        )
    if not file.is_file():
        raise DataError(f"task.source: {file} is no regular file")
    reader = {
        ".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows,
    }[suffix]  # fmt: skip
    yield from reader(file)


def read_json(text: str | bytes) -> Any:
    """Parse JSON with numbers left as text; NaN, infinity and repeated keys are refused.

    Raises:
        DataError: If it is no such JSON.
    """
    try:
        return json.loads(
            text,
            parse_int=NumberText,
            parse_float=NumberText,
            parse_constant=_refuse_constant,
            object_pairs_hook=without_repeats,
        )
    except RecursionError as error:
        raise DataError("not JSON: nested too deeply") from error
    except UnicodeDecodeError as error:
        raise DataError(f"not JSON: byte {error.start} is no UTF-8") from error
    except ValueError as error:
        raise DataError(f"not JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise DataError(f"{name} is no number in JSON; write it as text, or leave the row out")


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, as a hook of `json.loads`.

    Raises:
        DataError: If a key stands twice in it.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = next(key for key in values if sum(key == k for k, _ in pairs) > 1)
        raise DataError(f"the key {repeated!r} stands twice in one object")
    return values


def _jsonl_rows(file: Path) -> Iterator[SourceRow]:
    """Line by line, so that a bad line has a number and the others are still read."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                try:
                    values = read_json(text)
                except DataError as error:
                    yield SourceRow(f"{file}:{number}", {}, str(error))
                    continue
                yield _object_row(f"{file}:{number}", values)


def _json_rows(file: Path) -> Iterator[SourceRow]:
    """An array of objects; or objects line by line, as some call their JSON Lines."""
    content = file.read_bytes().removeprefix(b"\xef\xbb\xbf").strip()
    if not content:
        raise DataError(f"task.source: {file} is empty")
    if not content.startswith(b"["):
        yield from _jsonl_rows(file)
        return
    try:
        rows = read_json(content)
    except DataError as error:
        raise DataError(f"task.source: {file}: {error}") from error
    for number, values in enumerate(rows, start=1):
        yield _object_row(f"{file} row {number}", values)


def _object_row(place: str, values: Any) -> SourceRow:
    if isinstance(values, dict):
        return SourceRow(place, values)
    return SourceRow(place, {}, f"not a JSON object but {type(values).__name__}")


def _csv_rows(file: Path) -> Iterator[SourceRow]:
    """Every cell as it is written."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            columns = next(reader, [])
            _require_columns_once(file, columns)
            for cells in reader:
                place = f"{file}:{reader.line_num}"
                if len(cells) == len(columns):
                    yield SourceRow(place, dict(zip(columns, cells, strict=True)))
                elif cells:
                    yield SourceRow(place, {}, f"{len(cells)} cells for {len(columns)} columns")
    except csv.Error as error:
        raise DataError(f"task.source: {file}:{reader.line_num}: not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"task.source: {file} is not UTF-8 (byte {error.start})") from error


def _require_columns_once(file: Path, columns: Sequence[str]) -> None:
    if len(set(columns)) < len(columns):
        raise DataError(f"task.source: {file} names a column twice: {', '.join(columns)}")


def _parquet_rows(file: Path) -> Iterator[SourceRow]:
    try:
        table = pq.ParquetFile(file)
        _require_columns_once(file, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches():
            single = {
                field.name for field in batch.schema if field.type in (pa.float32(), pa.float16())
            }
            for row in batch.to_pylist():
                number += 1
                # A float32 is written with its own digits, not with those of a float64.
                kept = {
                    k: str(np.float32(v)) for k, v in row.items() if k in single and v is not None
                }
                yield SourceRow(f"{file} row {number}", {**row, **kept})
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"task.source: {file} is no Parquet file that can be read, or is damaged"
        ) from error


def _hub_rows(config: TaskConfig, source: str) -> Iterator[SourceRow]:
    import datasets  # noqa: PLC0415 - heavy, and local files do not need it

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
