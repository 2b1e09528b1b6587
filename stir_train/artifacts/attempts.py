"""Which process works on a run, and how far it is, for whoever looks from outside. Torch-free.

An attempt's directory holds ``process.json``, written when a process begins and again when it ends by itself,
and ``progress.json`` with its last word. A process that was killed wrote no end, so whether one that wrote
none is at work is asked of its host; of another host, its last word must be recent.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from stir_train.artifacts.atomic import write_json
from stir_train.errors import ArtifactError

PROCESS_FILE, PROGRESS_FILE, PROVENANCE_FILE = "process.json", "progress.json", "provenance.json"
FAILURE_FILE = "failure.json"
RECENT_SECONDS = 600.0
"""A process on another host that said nothing for longer is taken to be gone."""


Record = TypeVar("Record")


@dataclass(frozen=True)
class ProcessRecord:
    """A process that works, or worked, on a run.

    Attributes:
        host: Where it runs.
        pid: Its id there.
        began_at, ended_at: Seconds since the epoch; ``ended_at`` is None while it works, and of one that
            was killed.
    """

    host: str
    pid: int
    began_at: float
    ended_at: float | None = None


@dataclass(frozen=True)
class ProgressRecord:
    """How far a stage is.

    Attributes:
        title: The stage, or a part of it.
        done, total: In ``unit``.
        unit: As in ``rollouts``.
        speed: In words, with the time left; may be empty.
        at: When this was written, in seconds since the epoch.
    """

    title: str
    done: int
    total: int
    unit: str
    speed: str
    at: float

    def __str__(self) -> str:
        """``TITLE: DONE/TOTAL UNIT``, and the speed where it is known."""
        return f"{self.title}: {self.done}/{self.total} {self.unit}" + (
            f", {self.speed}" if self.speed else ""
        )


@dataclass(frozen=True)
class FailureRecord:
    """Why an attempt ended.

    Attributes:
        rank, host: Of the process that failed first.
        kind: The exception's class.
        message: What it says.
        traceback: Where it was raised.
    """

    rank: int
    host: str
    kind: str
    message: str
    traceback: str


@dataclass(frozen=True)
class RunningProcess:
    """A process that is at work, and its last word if it said one."""

    process: ProcessRecord
    progress: ProgressRecord | None


@dataclass(frozen=True)
class Maker:
    """Code and hardware that worked on a run.

    Attributes:
        git_sha: The commit; empty where the code is no checkout.
        python: Its version.
        libraries: Their versions by name.
        machine: The processor's architecture.
        cores: CPU cores that the first process could use.
        accelerators: Their names.
    """

    git_sha: str
    python: str
    libraries: Mapping[str, str]
    machine: str
    cores: int
    accelerators: Sequence[str] = ()


def makers_of(run: Path) -> list[tuple[Maker, list[int]]]:
    """What made a run, each with the numbers of its attempts, in order.

    Raises:
        ArtifactError: If a record of it is damaged.
    """
    found: list[tuple[Maker, list[int]]] = []
    for attempt in attempts_of(run):
        maker = _read(attempt / PROVENANCE_FILE, Maker)
        if maker is None:  # it ended before it had written any
            continue
        if found and found[-1][0] == maker:
            found[-1][1].append(_number(attempt))
        else:
            found.append((maker, [_number(attempt)]))
    return found


def failure_of(attempt: Path) -> FailureRecord | None:
    """Why an attempt ended; None if it did not fail, or was killed.

    Raises:
        ArtifactError: If its record is damaged.
    """
    return _read(attempt / FAILURE_FILE, FailureRecord)


def save_process(attempt: Path, record: ProcessRecord) -> None:
    """Write or replace an attempt's record of its process."""
    write_json(attempt / PROCESS_FILE, dataclasses.asdict(record))


def save_progress(attempt: Path, record: ProgressRecord) -> None:
    """Replace an attempt's last word."""
    write_json(attempt / PROGRESS_FILE, dataclasses.asdict(record))


def running_processes(run: Path, *, host: str, now: float | None = None) -> list[RunningProcess]:
    """The processes at work on a run, the newest attempt last.

    Args:
        run: The run directory.
        host: This host's name: its own processes are looked up.
        now: Seconds since the epoch; the clock's if None.

    Raises:
        ArtifactError: If a record of them is damaged.
    """
    now = time.time() if now is None else now
    found = []
    for attempt in attempts_of(run):
        process = _read(attempt / PROCESS_FILE, ProcessRecord)
        if process is None:
            continue
        progress = _read(attempt / PROGRESS_FILE, ProgressRecord)
        last = process.began_at if progress is None else progress.at
        here = process.host == host
        is_alive = _is_alive(process.pid) if here else now - last < RECENT_SECONDS
        if process.ended_at is None and is_alive:
            found.append(RunningProcess(process, progress))
    return found


def attempts_of(run: Path) -> list[Path]:
    """The directories of a run's attempts, in order."""
    found = (run / "logs").glob("attempt_*")
    return sorted((path for path in found if path.name[8:].isdecimal()), key=_number)


def _number(attempt: Path) -> int:
    return int(attempt.name.rpartition("_")[2])


def _read(path: Path, kind: type[Record]) -> Record | None:
    """A record; None if it is not there."""
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is damaged; it says only what worked on this run, and no result depends on it: "
            "delete it to go on without it"
        ) from error


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
