"""What `--dry-run` measures, in less time than it would give itself."""

from __future__ import annotations

import pytest

from stir_train.tools import measure


def measured_briefly(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.1) -> None:
    """Bound everything that is timed, so that a test which is about something else does not wait."""
    timed = (
        "LENGTH_SECONDS",
        "MOST_LENGTH_SECONDS",
        "WIDTH_SECONDS",
        "LEARNED_SECONDS",
        "SOME_SECONDS",
    )
    for name in timed:
        monkeypatch.setattr(measure, name, seconds)
