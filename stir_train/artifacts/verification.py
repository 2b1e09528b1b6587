"""Whether a finished stage is still what its manifest says: quickly, or every byte. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping

from stir_train.artifacts.atomic import file_sha256
from stir_train.artifacts.run_dir import STAGE_FILE, StageDir
from stir_train.errors import ArtifactError

SMALL_BYTES = 1 << 20
"""Files up to this size are hashed in a quick look too; of larger ones it knows the size alone."""
NUM_LISTED = 8
"""Damages that an error lists before it counts the rest."""


def damage_of(stage: StageDir, *, deep: bool) -> list[str]:
    """What is wrong with a finished stage's files; empty if nothing is.

    Args:
        stage: A finished stage.
        deep: Hash large files too.
    """
    try:
        manifest = stage.require_complete()
    except ArtifactError as error:
        return [str(error)]
    damaged = []
    for name, entry in manifest["files"].items():
        path = stage.path / name
        if not path.is_file():
            damaged.append(f"{path} is missing")
        elif (size := path.stat().st_size) != entry["bytes"]:
            damaged.append(f"{path} is damaged: {size:,} bytes, {entry['bytes']:,} were written")
        elif (deep or size <= SMALL_BYTES) and file_sha256(path) != entry["sha256"]:
            damaged.append(f"{path} is damaged: its sha256 is not the one that was written")
    if _began_as(stage) != {key: manifest[key] for key in ("schema", "stage", "config", "sources")}:
        damaged.append(f"{stage.path / STAGE_FILE} was altered after the stage finished")
    return damaged


def require_whole(stage: StageDir, *, deep: bool = False) -> None:
    """Check a finished stage's files.

    Raises:
        ArtifactError: Listing what is wrong.
    """
    damaged = damage_of(stage, deep=deep)
    if damaged:
        more = [f"and {len(damaged) - NUM_LISTED} more"] if len(damaged) > NUM_LISTED else []
        listed = "\n".join(f"  - {line}" for line in [*damaged[:NUM_LISTED], *more])
        raise ArtifactError(
            f"the {stage.name} stage is not whole:\n{listed}\n"
            "Get these files back from a copy, or --redo to remake this stage and those after it."
        )


def foreign_sources(stages: Mapping[str, StageDir]) -> list[str]:
    """Which finished stages were made from other ones than those beside them.

    Args:
        stages: The finished stages of a run, whole, by name.
    """
    found = []
    for name, stage in stages.items():
        for source, fingerprint in stage.require_complete()["sources"].items():
            other = stages.get(source.removeprefix("stage "))
            if source.startswith("stage ") and other and other.fingerprint() != fingerprint:
                found.append(f"{name} was made from another {other.name} than the one that is here")
    return found


def _began_as(stage: StageDir) -> dict[str, object]:
    try:
        held = json.loads((stage.path / STAGE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(held) if isinstance(held, dict) else {}
