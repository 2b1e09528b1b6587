"""Runs that go through every stage with the smallest budgets, steering as they are set to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.made_once import made_once
from tests.support.smoke import run_smoke

SMALL = (
    "splits={num_harvest: 12, num_tune: 6, num_test: 6}",
    "validation={num_rounds: 1, trials_per_round: 40, strengths: [3.0], selection_problems: 4}",
    "value.num_steps=20",
    "evaluate.num_bootstrap=100",
    "distill.num_steps=2",
    "distill.num_samples=1",
    "tune.enabled=false",
)


def run_small(output: Path, *arguments: str, verb: str = "run") -> subprocess.CompletedProcess[str]:
    """In this process."""
    return run_smoke(output, *SMALL, *arguments, verb=verb)


def small_run(temporary: pytest.TempPathFactory) -> Path:
    """The directory of outputs of a finished one, which test files share."""
    return made_once(temporary, "small", _make)


def _make(output: Path) -> None:
    done = run_small(output)
    assert done.returncode == 0, done.stderr
