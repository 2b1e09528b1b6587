"""What SIGKILL costs: a small run is killed at random moments of every stage and begun again.

Usage: ``python benchmarks/kills.py --kills 100 --seed 0 [--ranks 2] [--course directions]``. A first run of the
same configuration, left alone, says how long each stage takes and what bytes it makes. Then runs are killed:
a stage is drawn, and a moment within it; the same command goes on. A run that was killed five times ends, and
every artifact is compared with the first run's. Prints how many kills fell into which stage, and how many
runs ended with other bytes: exit status 1 if any did, or did not end.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stir_train.config.pipeline import STAGE_NAMES

SMOKE = Path(__file__).resolve().parent.parent / "configs" / "tiny" / "smoke.yaml"
KILLS_PER_RUN = 5
POLL_SECONDS = 0.02
LIMIT_SECONDS = 3600
COURSES = {
    "steered": (
        "splits={num_harvest: 12, num_tune: 6, num_test: 6}",
        "validation={num_rounds: 1, trials_per_round: 40, strengths: [3.0], selection_problems: 4}",
        "value.num_steps=20",
        "tune.enabled=false",  # six problems choose nothing
        "evaluate.num_bootstrap=100",
        "distill.num_steps=4",
        "distill.num_samples=1",
    ),
    "directions": (
        "splits={num_harvest: 24, num_tune: 6, num_test: 6}",
        "rollout.temperature=1.0",
        "harvest.depths=[0.8]",
        "tune={modes: [vector], vectors: {every_token: [0.1]}, max_accuracy_loss: 1, num_halvings: 0}",
        "directions.num_steps=2",
        "distill.enabled=false",
    ),
}
"""Overrides of the smallest configuration. The second has a stage that makes directions in two steps."""


@dataclass(frozen=True)
class Command:
    """A run, begun or gone on with.

    Attributes:
        course: Its overrides.
        num_ranks: Processes that work on it.
    """

    course: str
    num_ranks: int

    def start(self, directory: Path) -> list[subprocess.Popen[bytes]]:
        """Start its processes."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        verb = ["-W", "ignore", "-m", "stir_train", "run", str(SMOKE), f"output_dir={directory}"]
        processes = []
        for rank in range(self.num_ranks):
            launch = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": self.num_ranks,
                "LOCAL_WORLD_SIZE": self.num_ranks,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            added = [f"{name}={value}" for name, value in launch.items()]
            environment = ["env", "OMP_NUM_THREADS=1", *(added if self.num_ranks > 1 else [])]
            with (directory / f"log.{rank}").open("ab") as log:
                processes.append(
                    subprocess.Popen(
                        [*environment, sys.executable, *verb, *COURSES[self.course]],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        return processes


def artifacts(directory: Path) -> dict[str, str]:
    """Hash of every file of every stage; the report's plots are drawings, and not compared."""
    run = directory / "smoke"
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for name in STAGE_NAMES
        for path in sorted((run / name).rglob("*"))
        if path.is_file() and name != "report"
    }


def stage_being_made(directory: Path) -> str | None:
    """The first stage that was begun and is not finished."""
    run = directory / "smoke"
    for name in STAGE_NAMES:
        if (run / name).is_dir() and not (run / name / "complete").exists():
            return name
    return None


def run_through(command: Command, directory: Path) -> dict[str, float]:
    """Let a run end; how long it was in each stage.

    Raises:
        SystemExit: If it fails.
    """
    processes = command.start(directory)
    seconds: Counter[str] = Counter()
    since = time.monotonic()
    while any(process.poll() is None for process in processes):
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        name = stage_being_made(directory)
        if name is not None:
            seconds[name] += now - since  # type: ignore[assignment]
        since = now
    if any(process.returncode for process in processes):
        raise SystemExit(f"the run in {directory} failed: see its log")
    return dict(seconds)


def kill_in(command: Command, directory: Path, stage: str, seconds: float) -> str | None:
    """Go on with a run and kill it after some time in a stage; where it was, None if it had ended."""
    processes = command.start(directory)
    entered: float | None = None
    limit = time.monotonic() + LIMIT_SECONDS
    while all(process.poll() is None for process in processes) and time.monotonic() < limit:
        name = stage_being_made(directory)
        is_there = name is not None and STAGE_NAMES.index(name) >= STAGE_NAMES.index(stage)
        if is_there and entered is None:
            entered = time.monotonic()
        if entered is not None and time.monotonic() - entered >= seconds:
            break
        time.sleep(POLL_SECONDS)
    killed = any(process.poll() is None for process in processes)
    where = stage_being_made(directory) or "between stages"
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return where if killed else None


def campaign(command: Command, num_kills: int, seed: int, work: Path) -> tuple[Counter[str], int]:
    """Kill runs until there were so many kills; where they fell, and how many runs were not as the first."""
    rng = random.Random(seed)
    (work / "first").mkdir()
    seconds = run_through(command, work / "first")
    expected = artifacts(work / "first")
    stages = [name for name in STAGE_NAMES if name in seconds]
    where: Counter[str] = Counter()
    num_lost = number = 0
    while where.total() < num_kills:
        directory = work / f"run-{number}"
        directory.mkdir()
        number += 1
        left = min(KILLS_PER_RUN, num_kills - where.total())
        drawn = sorted(rng.choices(stages, k=left), key=STAGE_NAMES.index)
        for stage in drawn:
            fell = kill_in(command, directory, stage, rng.uniform(0, seconds[stage]))
            if fell is not None:
                where[fell] += 1
                print(f"run {number}: killed in {fell}", flush=True)
        try:
            run_through(command, directory)
        except SystemExit as error:
            print(error, flush=True)
            num_lost += 1
            continue
        is_same = artifacts(directory) == expected
        num_lost += not is_same
        print(f"run {number}: {'the same bytes' if is_same else 'OTHER BYTES'}", flush=True)
    return where, num_lost


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--course", choices=sorted(COURSES), default="steered")
    parser.add_argument("--keep", type=Path, help="Work here, an empty directory, and keep it.")
    asked = parser.parse_args(arguments)
    command = Command(asked.course, asked.ranks)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        where, num_lost = campaign(command, asked.kills, asked.seed, work)
    fell = ", ".join(f"{name} {count}" for name, count in sorted(where.items()))
    print(f"{where.total()} kills ({fell}) over {asked.ranks} ranks; {num_lost} runs lost or other")
    return int(num_lost > 0)


if __name__ == "__main__":
    sys.exit(main())
