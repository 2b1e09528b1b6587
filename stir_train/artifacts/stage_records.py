"""What a stage keeps of itself, and why a stage is not there. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stir_train.config.pipeline import STAGE_NAMES
from stir_train.errors import ArtifactError

MARKER, MANIFEST = "complete", "manifest.json"


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ArtifactError: If there is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: expected a JSON object")
    return value


def why_absent(stage: Path) -> str:
    """Why a stage's directory holds no finished stage: the run ended before it, or did not get there yet."""
    if stage.exists():
        return f"{stage}: the {stage.name} stage is unfinished; run it first"
    last = _last_before(stage)
    if last is not None and (last / MARKER).is_file():
        reason = read_record(last / MANIFEST).get("ends_run")
        if reason is not None:
            return (
                f"{stage.parent}: the run ended at {last.name}, so it has no {stage.name} stage. "
                f"{last.name}: {reason}"
            )
    return f"{stage}: the {stage.name} stage is missing; run it first"


def _last_before(stage: Path) -> Path | None:
    """The last stage of the run, in the pipeline's order, that was begun and comes before one."""
    if stage.name not in STAGE_NAMES:
        return None
    before = STAGE_NAMES[: STAGE_NAMES.index(stage.name)]
    begun = [stage.parent / name for name in before if (stage.parent / name).exists()]
    return begun[-1] if begun else None
