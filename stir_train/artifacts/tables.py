"""Tables of frozen records in Parquet files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from stir_train.artifacts.run_dir import StageDir
from stir_train.errors import ArtifactError

Record = TypeVar("Record")
_SCALARS = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


def save_table(stage: StageDir, name: str, kind: type[Record], rows: Sequence[Record]) -> None:
    """Write records of one dataclass as one of a stage's files; nested records become structs."""
    table = pa.Table.from_pylist(
        [dataclasses.asdict(row) for row in rows],  # type: ignore[call-overload]
        schema=pa.schema(_fields(kind)),
    )
    with stage.writing(name) as path:
        pq.write_table(table, path, compression="zstd")


def load_table(path: Path, kind: type[Record]) -> list[Record]:
    """Read records back.

    Raises:
        ArtifactError: If the file is truncated, or its columns are not the record's fields.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} cannot be read as Parquet: {error}") from error
    expected = [field.name for field in _fields(kind)]
    if table.column_names != expected:
        raise ArtifactError(f"{path}: expected columns {expected}, found {table.column_names}")
    return [_build(kind, row) for row in table.to_pylist()]


def _fields(kind: type) -> list[pa.Field]:
    hints = get_type_hints(kind)
    return [pa.field(f.name, _arrow_type(hints[f.name])) for f in dataclasses.fields(kind)]


def _arrow_type(annotation: Any) -> pa.DataType:
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return pa.struct(_fields(annotation))
    if get_origin(annotation) is tuple:
        return pa.list_(_arrow_type(get_args(annotation)[0]))
    if all(isinstance(value, str) for value in get_args(annotation)):
        return pa.string()
    raise TypeError(f"no column type for {annotation!r}")


def _build(annotation: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        hints = get_type_hints(annotation)
        return annotation(**{name: _build(hints[name], item) for name, item in value.items()})
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        if inner in _SCALARS:
            return tuple(value)
        return tuple(_build(inner, item) for item in value)
    return value
