"""What SIGKILL costs: a small run is killed at random moments of every stage and begun again.

Usage: ``python benchmarks/kills.py --kills 100 --seed 0 [--ranks 2] [--course directions]``. A first run of the
same configuration, left alone, says how long each stage takes and what bytes it makes. Then runs are killed:
a stage is drawn, and a moment within it; the same command goes on. A run that was killed so often (``--per-run``)
ends, and every artifact is compared with the first run's. Prints how many kills fell into which stage, and how many
runs ended with other bytes: exit status 1 if any did, or did not end.

Importing torch takes longer than this run does. So every attempt is a fork of this process, which has imported
it and done nothing else; so is the process that checks an adapter. Moments are counted in the attempt's own processor time, whatever else is running.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from stir_train.config.pipeline import STAGE_NAMES
from stir_train.export import verify

SMOKE = Path(__file__).resolve().parent.parent / "configs" / "tiny" / "smoke.yaml"
POLL_SECONDS = 0.01
LIMIT_SECONDS = 3600
IMPORTED = (
    "torch",
    "transformers",
    "peft",
    "matplotlib.pyplot",
    "stir_train.cli",
    *(f"stir_train.recipes.{name}" for name in STAGE_NAMES),
)
"""What an attempt would import; nothing of it starts threads."""
COURSES = {
    "steered": (
        "splits={num_harvest: 12, num_tune: 6, num_test: 6}",
        "validation={num_rounds: 1, trials_per_round: 40, strengths: [3.0], selection_problems: 4}",
        "value.num_steps=20",
        "tune.enabled=false",  # six problems choose nothing
        "evaluate.num_bootstrap=100",
        "distill.num_steps=4",
        "distill.num_samples=1",
        "distill.also={}",
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


def fork(argv: Sequence[str], environment: dict[str, str], output: Path, errors: Path) -> int:
    """Start ``python ARGV`` as a fork of this process; what it prints is added to two files.

    Returns:
        Its process id.
    """
    process_id = os.fork()
    if process_id:
        return process_id
    status = 1
    try:
        with output.open("ab") as to_output, errors.open("ab") as to_errors:
            os.dup2(to_output.fileno(), sys.stdout.fileno())
            os.dup2(to_errors.fileno(), sys.stderr.fileno())
        os.environ.update(environment)  # noqa: TID251 - this process becomes the program
        try:
            if argv[0] == "-m":
                sys.argv = list(argv[1:])
                runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = list(argv)
                runpy.run_path(argv[0], run_name="__main__")
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        os._exit(status)


def run_forked(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` answers for ``[python, -I, SCRIPT, ...]`` with its output captured as text."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        _, status = os.waitpid(fork(command[2:], {}, output, errors), 0)
        code = os.waitstatus_to_exitcode(status)
        return subprocess.CompletedProcess(command, code, output.read_text(), errors.read_text())


@dataclass
class Attempt:
    """A forked process that runs ``python -m stir_train ARGUMENTS``.

    Attributes:
        process_id: Its.
        status: How it ended, as `os.waitpid` says; None while it runs.
        seconds: Of processor time that it has taken.
    """

    process_id: int
    status: int | None = None
    seconds: float = 0.0

    def is_running(self) -> bool:
        """Whether it has not ended; also looks at its clock."""
        if self.status is None:
            with suppress(OSError):
                text = Path(f"/proc/{self.process_id}/schedstat").read_text(encoding="ascii")
                self.seconds = int(text.split()[0]) / 1e9
            ended, status = os.waitpid(self.process_id, os.WNOHANG)
            self.status = status if ended else None
        return self.status is None

    def kill(self) -> None:
        """End it if it runs."""
        if self.is_running():
            os.kill(self.process_id, signal.SIGKILL)
            self.status = os.waitpid(self.process_id, 0)[1]


@dataclass(frozen=True)
class Command:
    """A run, begun or gone on with.

    Attributes:
        course: Its overrides.
        num_ranks: Processes that work on it.
    """

    course: str
    num_ranks: int

    def start(self, directory: Path) -> list[Attempt]:
        """Start its processes."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        arguments = [
            "-m",
            "stir_train",
            "run",
            str(SMOKE),
            f"output_dir={directory}",
            *COURSES[self.course],
        ]
        attempts = []
        for rank in range(self.num_ranks):
            launch = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self.num_ranks),
                "LOCAL_WORLD_SIZE": str(self.num_ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            environment = launch if self.num_ranks > 1 else {}
            log = directory / f"log.{rank}"
            attempts.append(Attempt(fork(arguments, environment, log, log)))
        return attempts


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
    """Let a run end; the processor time that its first process took in each stage.

    Raises:
        SystemExit: If it fails.
    """
    attempts = command.start(directory)
    seconds: dict[str, float] = {}
    since = 0.0
    while any([attempt.is_running() for attempt in attempts]):
        time.sleep(POLL_SECONDS)
        name = stage_being_made(directory)
        if name is not None:
            seconds[name] = seconds.get(name, 0.0) + attempts[0].seconds - since
        since = attempts[0].seconds
    if any(attempt.status for attempt in attempts):
        raise SystemExit(f"the run in {directory} failed: see its log")
    return seconds


def kill_in(command: Command, directory: Path, stage: str, seconds: float) -> str | None:
    """Go on with a run and kill it after some time in a stage; where it was, None if it had ended."""
    attempts = command.start(directory)
    entered: float | None = None
    limit = time.monotonic() + LIMIT_SECONDS
    while all([attempt.is_running() for attempt in attempts]) and time.monotonic() < limit:
        name = stage_being_made(directory)
        is_there = name is not None and STAGE_NAMES.index(name) >= STAGE_NAMES.index(stage)
        if is_there and entered is None:
            entered = attempts[0].seconds
        if entered is not None and attempts[0].seconds - entered >= seconds:
            break
        time.sleep(POLL_SECONDS)
    killed = any([attempt.is_running() for attempt in attempts])
    where = stage_being_made(directory) or "between stages"
    for attempt in attempts:
        attempt.kill()
    return where if killed else None


def campaign(
    command: Command, num_kills: int, kills_per_run: int, *, seed: int, work: Path
) -> tuple[Counter[str], int]:
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
        left = min(kills_per_run, num_kills - where.total())
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
    parser.add_argument("--per-run", type=int, default=10, help="Kills of one run before it ends.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--course", choices=sorted(COURSES), default="steered")
    parser.add_argument("--keep", type=Path, help="Work here, an empty directory, and keep it.")
    asked = parser.parse_args(arguments)
    command = Command(asked.course, asked.ranks)
    os.environ["OMP_NUM_THREADS"] = "1"  # noqa: TID251 - torch reads it when it is imported
    warnings.simplefilter("ignore")
    for name in IMPORTED:
        importlib.import_module(name)
    verify.subprocess = SimpleNamespace(run=run_forked)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        where, num_lost = campaign(command, asked.kills, asked.per_run, seed=asked.seed, work=work)
    fell = ", ".join(f"{name} {count}" for name, count in sorted(where.items()))
    print(f"{where.total()} kills ({fell}) over {asked.ranks} ranks; {num_lost} runs lost or other")
    return int(num_lost > 0)


if __name__ == "__main__":
    sys.exit(main())
