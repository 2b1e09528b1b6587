"""Talk to Slurm: submit a chain, ask after jobs, cancel them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stir_train.artifacts.atomic import write_json, write_text
from stir_train.artifacts.run_dir import RunDir
from stir_train.config.load import dump_config
from stir_train.config.run import RunConfig
from stir_train.errors import ConfigError, StageError
from stir_train.launch.jobs import Job, render_job
from stir_train.launch.site import SiteConfig

SLURM, JOBS_FILE, LOGS = "slurm", "jobs.json", "logs"
UNKNOWN_JOB = "Invalid job id"


@dataclass(frozen=True)
class SubmittedJob:
    """A job in the queue, or that was there.

    Attributes:
        name, stages: As in `Job`.
        job_id: Slurm's.
        script: Its sbatch script.
    """

    name: str
    stages: tuple[str, ...]
    job_id: int
    script: str


def scripts_of(config: RunConfig, site: SiteConfig, jobs: Sequence[Job]) -> list[tuple[Path, str]]:
    """Path and text of every job's script, after the configuration that they all read."""
    directory = config.directory / SLURM
    frozen = directory / "config.yaml"
    return [
        (frozen, dump_config(config)),
        *(
            (
                directory / f"{number:02d}-{job.name}.sbatch",
                render_job(job, site, config_file=frozen, logs=config.directory / LOGS / SLURM),
            )
            for number, job in enumerate(jobs, start=1)
        ),
    ]


def submit(
    run_dir: RunDir, jobs: Sequence[Job], files: Sequence[tuple[Path, str]]
) -> list[SubmittedJob]:
    """Write what `scripts_of` made and submit the jobs, each after the one before it succeeded.

    The configuration is frozen with them: editing the user's file changes nothing that is queued.

    Raises:
        StageError: If jobs of this run are in the queue already, or sbatch refuses; what it had
            taken of the chain is cancelled.
    """
    require_slurm()
    alive = [job for job in submitted_jobs(run_dir) if job_state(job.job_id) in ALIVE]
    if alive:
        listed = ", ".join(f"{job.job_id} ({job.name})" for job in alive)
        raise StageError(
            f"jobs of this run are in the queue already: {listed}; wait for them, or "
            f"`stir-train cancel {run_dir.path}`"
        )
    (run_dir.path / LOGS / SLURM).mkdir(parents=True, exist_ok=True)
    for path, text in files:
        write_text(path, text)
    done: list[SubmittedJob] = []
    for job, (path, _) in zip(jobs, files[1:], strict=True):
        after = [f"--dependency=afterok:{done[-1].job_id}"] if done else []
        completed = _slurm(["sbatch", "--parsable", *after, str(path)])
        if completed.returncode != 0:
            for earlier in done:
                _slurm(["scancel", str(earlier.job_id)])
            raise StageError(f"sbatch refused {path}: {completed.stderr.strip()}")
        job_id = int(completed.stdout.strip().split(";")[0])
        done.append(SubmittedJob(job.name, job.stages, job_id, str(path)))
    write_json(run_dir.path / SLURM / JOBS_FILE, [asdict(job) for job in done])
    return done


def submitted_jobs(run_dir: RunDir) -> list[SubmittedJob]:
    """The last chain that was submitted for a run."""
    path = run_dir.path / SLURM / JOBS_FILE
    if not path.is_file():
        return []
    listed = json.loads(path.read_text(encoding="utf-8"))
    return [SubmittedJob(**{**item, "stages": tuple(item["stages"])}) for item in listed]


ALIVE = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD")


def job_state(job_id: int) -> str:
    """What Slurm says of a job; of an array, the state of what is still to come of it.

    Raises:
        StageError: If Slurm cannot be asked.
    """
    listed = _slurm(["scontrol", "--oneliner", "show", "job", str(job_id)])
    if listed.returncode != 0:
        if UNKNOWN_JOB in listed.stderr:
            return "GONE"
        raise StageError(f"scontrol: {listed.stderr.strip()}")
    states = re.findall(r"JobState=(\w+)", listed.stdout)
    alive = [state for state in states if state in ALIVE]
    bad = [state for state in states if state != "COMPLETED"]
    return (alive or bad or states)[0]


def cancel(run_dir: RunDir) -> list[SubmittedJob]:
    """Cancel what is left of a run's chain, the last job first; return what was cancelled."""
    require_slurm()
    alive = [job for job in submitted_jobs(run_dir) if job_state(job.job_id) in ALIVE]
    for job in reversed(alive):
        completed = _slurm(["scancel", str(job.job_id)])
        if completed.returncode != 0:
            raise StageError(f"scancel {job.job_id}: {completed.stderr.strip()}")
    return alive


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


def _slurm(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)
