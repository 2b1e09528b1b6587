"""Runs of the smallest configuration that goes through every stage."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from stir_train.artifacts.run_dir import RunDir
from tests.support.commands import stir_train
from tests.support.read_only import read_only

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
ONE_VECTOR = (
    "splits={num_harvest: 64, num_tune: 48, num_test: 24}",
    "rollout.temperature=1.0",
    "harvest.depths=[0.8]",
    "tune={modes: [vector], vectors: {every_token: [0.1], prompt_end: [0.025]}, max_accuracy_loss: 1, "
    "num_halvings: 0}",
    "utility.token_price=5",
    "distill.enabled=false",
)
"""Settings of a run that steers by one vector held at every token: a norm that changes answers of a model of
this size, and a price at which that is a gain."""
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


@dataclass(frozen=True)
class Looked:
    """What verbs that only read a run answered, and its files before and after.

    Attributes:
        answers: By verb.
        adapter: Where the adapter was exported to.
        before, after: When each file was changed last, in nanoseconds.
    """

    answers: dict[str, subprocess.CompletedProcess[str]]
    adapter: Path
    before: dict[Path, int]
    after: dict[Path, int]


def look_at_smoke(output: Path, adapter: Path) -> Looked:
    """Run each of these verbs once, on a disk that is read-only, while another process holds the run's lock."""
    verbs = {
        "trace": (),
        "generate": ("--prompt", "a3, b4, c1, d9: ones sum, exam\n"),
        "export": ("--to", str(adapter)),
        "verify": (),
    }

    of_a_run = {
        "inspect": ("--deep",),
        "status": (),
        "explain": (),
        "compare": (str(output / "smoke"),),
    }

    def listed() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in (output / "smoke").rglob("*")}

    with RunDir(output / "smoke").locked():
        before = listed()
        with read_only(output / "smoke"):
            answers = {verb: run_smoke(output, *more, verb=verb) for verb, more in verbs.items()}
            for verb, more in of_a_run.items():
                answers[verb] = stir_train(verb, str(output / "smoke"), *more)
        return Looked(answers, adapter, before, listed())
