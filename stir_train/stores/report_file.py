"""A stage's figures, as JSON."""

from __future__ import annotations

import json
from typing import Any

from stir_train.artifacts.run_dir import StageDir

REPORT_FILE = "report.json"


def save_report(stage: StageDir, report: dict[str, Any]) -> None:
    """Write a stage's figures."""
    with stage.writing(REPORT_FILE) as path:
        path.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_report(stage: StageDir) -> dict[str, Any]:
    """A finished stage's figures."""
    return dict(json.loads(stage.file(REPORT_FILE).read_text(encoding="utf-8")))
