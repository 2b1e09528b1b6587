"""Runs of the smallest configuration that goes through every stage."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from tests.support.commands import stir_train

ROOT = Path(__file__).resolve().parent.parent.parent
SMOKE = ROOT / "configs" / "tiny" / "smoke.yaml"
STAGES = [
    "rollout",
    "harvest",
    "basis",
    "validate",
    "value",
    "tune",
    "steer",
    "distill",
    "evaluate",
    "report",
]
PYTHON = [sys.executable, "-W", "ignore", "-m", "stir_train"]


def smoke_arguments(output: Path, *arguments: str, verb: str = "run") -> list[str]:
    return [verb, str(SMOKE), f"output_dir={output}", *arguments]


def run_smoke(output: Path, *arguments: str, verb: str = "run") -> subprocess.CompletedProcess[str]:
    """In this process."""
    return stir_train(*smoke_arguments(output, *arguments, verb=verb))


def digests(output: Path) -> dict[str, str]:
    """Hash of every artifact; logs and metrics are about attempts, not about results."""
    run = output / "smoke"
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for stage in STAGES
        for path in sorted((run / stage).rglob("*"))
        if path.is_file() and stage != "report"
    }
