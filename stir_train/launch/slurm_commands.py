"""Slurm's commands, each with a limit of its time: a controller that is down is an error, not a wait."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from stir_train.errors import ConfigError, StageError

QUERY_SECONDS, CHANGE_SECONDS = 15.0, 60.0
"""Time given to a question, and to what changes the queue."""
UNKNOWN_JOB = "Invalid job id"
ALIVE = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD")
_JOB_ID = re.compile(r"(\d+)(;[\w.-]+)?")
"""What `sbatch --parsable` prints: the id and, where there are several, the cluster."""


class NoAnswerError(StageError):
    """Slurm was asked for something, and whether it was done is not known."""


def require_slurm() -> None:
    """Stop where there is no Slurm.

    Raises:
        ConfigError: If its commands are not on PATH.
    """
    missing = [name for name in ("sbatch", "scontrol", "scancel") if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not on PATH: jobs are submitted from a login node of a Slurm "
            "cluster; without --submit the run is made here"
        )


def submit_script(path: Path, *, name: str, after: int | None) -> int:
    """Queue a script under a name, after another job has succeeded; return its job id.

    Raises:
        NoAnswerError: If it may be in the queue, but its id is not known.
        StageError: If sbatch refuses it.
    """
    dependency = [] if after is None else [f"--dependency=afterok:{after}"]
    argv = ["sbatch", "--parsable", f"--job-name={name}", *dependency, str(path)]
    completed = _run(argv, CHANGE_SECONDS)
    if completed.returncode != 0:
        raise StageError(f"sbatch refused {path}: {completed.stderr.strip()}")
    # Sites print banners, before the id as a rule.
    for line in reversed(completed.stdout.splitlines()):
        if match := _JOB_ID.fullmatch(line.strip()):
            return int(match[1])
    raise NoAnswerError(
        f"sbatch printed no job id for {path}, it said {completed.stdout.strip()[-200:]!r}"
    )


def jobs_named(names: Sequence[str]) -> dict[str, int]:
    """Ids of the jobs that Slurm knows by some names; of an array, that of the whole.

    Raises:
        StageError: If Slurm cannot be asked.
    """
    argv = ["squeue", "--noheader", "--states=all", f"--name={','.join(names)}", "--format=%F|%j"]
    listed = _run(argv, QUERY_SECONDS)
    if listed.returncode != 0:
        raise StageError(f"squeue: {listed.stderr.strip()}")
    pairs = (line.strip().split("|", 1) for line in listed.stdout.splitlines() if "|" in line)
    return {name: int(number) for number, name in pairs if name in names and number.isdigit()}


def job_state(job_id: int) -> str:
    """What Slurm says of a job; of an array, the state of what is still to come of it.

    Raises:
        StageError: If Slurm cannot be asked.
    """
    listed = _run(["scontrol", "--oneliner", "show", "job", str(job_id)], QUERY_SECONDS)
    if listed.returncode != 0:
        if UNKNOWN_JOB in listed.stderr:
            return "GONE"
        raise StageError(f"scontrol: {listed.stderr.strip()}")
    states = re.findall(r"JobState=(\w+)", listed.stdout)
    if not states:
        raise StageError(f"scontrol says nothing of job {job_id}: {listed.stdout.strip()[-200:]!r}")
    alive = [state for state in states if state in ALIVE]
    bad = [state for state in states if state != "COMPLETED"]
    return str((alive or bad or states)[0])


def cancel_job(job_id: int) -> None:
    """Take a job out of the queue, or end it.

    Raises:
        StageError: If Slurm does not.
    """
    completed = _run(["scancel", str(job_id)], CHANGE_SECONDS)
    if completed.returncode != 0:
        raise StageError(f"scancel {job_id}: {completed.stderr.strip()}")


def _run(argv: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(
            f"{argv[0]} gave no answer within {seconds:g} s: is Slurm's controller up?"
        ) from error
    except FileNotFoundError as error:
        raise StageError(f"{argv[0]} is not on PATH") from error
