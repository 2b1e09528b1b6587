"""Records as JSON files of a stage: what is read back is whole, unaltered and of the expected fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from stir_train.artifacts.run_dir import StageDir
from stir_train.errors import ArtifactError

REPORT_FILE = "report.json"
NUM_SHOWN = 5
"""Differences that an error lists before it counts the rest."""

Record = TypeVar("Record")


def save_report(stage: StageDir, report: object) -> None:
    """Write a stage's report, a record of `stir_train.types`."""
    save_record(stage, REPORT_FILE, report)


def load_report(stage: StageDir, kind: type[Record]) -> Record:
    """Read a finished stage's report.

    Raises:
        ArtifactError: If the stage is not finished, the file was altered, or its fields are others.
    """
    return load_record(stage.file(REPORT_FILE), kind)


def save_record(stage: StageDir, name: str, record: object) -> None:
    """Write a record as one of a stage's files."""
    plain = TypeAdapter(type(record)).dump_python(record, mode="json")
    with stage.writing(name) as path:
        path.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_record(path: Path, kind: type[Record]) -> Record:
    """Read a record from a JSON file.

    Raises:
        ArtifactError: If the file is no JSON, or its fields are not the record's; says which.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(
            f"{path} does not hold a {kind.__name__}: {_differences(error)}; another version of "
            "stir-train wrote it, so make it again with --redo"
        ) from error


def _differences(error: ValidationError) -> str:
    """What is missing, unknown or of another type, the first few by place."""
    described = []
    for found in error.errors(include_url=False):
        place = ".".join(str(part) for part in found["loc"]) or "the file"
        kind = found["type"]
        if kind == "missing":
            described.append(f"{place} is missing")
        elif kind in ("extra_forbidden", "unexpected_keyword_argument"):
            described.append(f"{place} is unknown")
        else:
            described.append(f"{place}: {found['msg'].lower()}")
    more = len(described) - NUM_SHOWN
    return "; ".join(described[:NUM_SHOWN]) + (f"; and {more} more" if more > 0 else "")
