"""For how many frozen choices a run's test split was opened. Torch-free.

Intervals are honest for the first choice alone, so the record outlives ``--redo``, and a record that was
altered, cut or deleted is refused rather than counted from the start.
"""

from __future__ import annotations

import json
from pathlib import Path

from stir_train.artifacts.atomic import json_sha256, write_json, write_text
from stir_train.errors import ArtifactError

OPENINGS_FILE = "test_openings.json"
NUM_OPENINGS_FILE = ".num_test_openings"
"""Written after the record, so that a record that is gone, or an older one, is noticed."""


def record_opening(run: Path, choice: str) -> int:
    """Note that the test split is opened for a frozen choice.

    Resuming counts once; remaking the choice and evaluating again counts again.

    Args:
        run: The run directory.
        choice: Hash of what was frozen before the split was opened.

    Returns:
        For how many choices it was opened so far.

    Raises:
        ArtifactError: If the record is damaged.
    """
    choices = _recorded(run)
    if choice not in choices:
        choices.append(choice)
        write_json(run / OPENINGS_FILE, {"choices": choices, "sha256": json_sha256(choices)})
    write_text(run / NUM_OPENINGS_FILE, f"{len(choices)}\n")
    return len(choices)


def _recorded(run: Path) -> list[str]:
    """The choices so far."""
    path, counted = run / OPENINGS_FILE, run / NUM_OPENINGS_FILE
    if not path.is_file() and not counted.is_file():
        return []
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        choices = list(held["choices"])
        is_whole = held["sha256"] == json_sha256(choices)
        expected = int(counted.read_text(encoding="utf-8")) if counted.is_file() else 0
    except (OSError, ValueError, KeyError, TypeError):
        is_whole, choices, expected = False, [], 0
    if not is_whole or len(choices) < expected:
        raise ArtifactError(
            f"{path} is damaged or missing: it says for how many choices the test split was opened. "
            "Put it back as it was, or use another run name"
        )
    return choices
