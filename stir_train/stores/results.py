"""``results.json``: the held-out comparison of a run, read by the run's directory alone."""

from __future__ import annotations

import json
from pathlib import Path

from stir_train.artifacts.run_dir import RunDir, StageDir
from stir_train.errors import ArtifactError
from stir_train.stores.reports import load_record, save_record
from stir_train.types.results import Results

RESULTS_FILE = "results.json"
RESULTS_SCHEMA = 5


def save_results(stage: StageDir, results: Results) -> None:
    """Write the results as one of a stage's files."""
    save_record(stage, RESULTS_FILE, results)


def load_results(stage: StageDir) -> Results:
    """Read the results of a finished stage, its checksums verified.

    Raises:
        ArtifactError: If the stage is not finished, the file was altered, or its schema is another.
    """
    path = stage.file(RESULTS_FILE)
    _require_schema(path)
    return load_record(path, Results)


def load_run_results(run: Path, stage: str) -> Results:
    """Read the results of a run directory.

    Args:
        run: The run directory.
        stage: The directory in it of the stage that compares methods.

    Raises:
        ArtifactError: If there is no such run, or as `load_results`.
    """
    if not run.is_dir():
        raise ArtifactError(f"{run} is no run directory")
    return load_results(RunDir(run).stage(stage))


def _require_schema(path: Path) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path} is no JSON: {error}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != RESULTS_SCHEMA:
        raise ArtifactError(
            f"{path}: results of schema {RESULTS_SCHEMA} were expected, found {schema}; another version "
            "of stir-train wrote it, so evaluate again with --redo"
        )
