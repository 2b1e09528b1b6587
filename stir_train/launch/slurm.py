"""A chain of jobs: submitted, asked after, cancelled.

The chain is written before its first job is queued, and every id as soon as it is known. A job whose
id was lost, because the submission was killed or Slurm's answer did not come, is found by its name in
the queue, which no other job has.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from stir_train.artifacts.atomic import remove_leftovers, write_json, write_text
from stir_train.artifacts.run_dir import CONFIG_FILE, RunDir
from stir_train.config.load import dump_config
from stir_train.config.run import RunConfig
from stir_train.errors import ArtifactError, ConfigError, StageError
from stir_train.launch.jobs import Job, render_job, render_submission
from stir_train.launch.site import SiteConfig
from stir_train.launch.slurm_commands import (
    ALIVE,
    NoAnswerError,
    cancel_job,
    job_state,
    jobs_named,
    require_slurm,
    submit_script,
)

SLURM, JOBS_FILE, LOGS, SUBMIT_FILE = "slurm", "jobs.json", "logs", "submit.sh"


@dataclass(frozen=True)
class PlannedJob:
    """A job of a chain, queued or about to be.

    Attributes:
        name, stages: As in `Job`.
        queue_name: Its name in Slurm's queue, like no other job's.
        script: Its sbatch script.
        job_id: Slurm's; None until sbatch has told it.
    """

    name: str
    stages: tuple[str, ...]
    queue_name: str
    script: str
    job_id: int | None = None


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


def scripts_of(
    config: RunConfig, site: SiteConfig, jobs: Sequence[Job], *, folder: Path | None = None
) -> list[tuple[Path, str]]:
    """Path and text of every job's script, after the configuration that they all read.

    Args:
        config: Of the run.
        site: What the cluster offers.
        jobs: Of `plan_jobs`.
        folder: Where they and Slurm's logs will lie; None for the run's own places.
    """
    directory = config.directory / SLURM if folder is None else folder
    logs = config.directory / LOGS / SLURM if folder is None else folder / LOGS
    frozen = directory / CONFIG_FILE
    return [
        (frozen, dump_config(config)),
        *(
            (
                directory / f"{number:02d}-{job.name}.sbatch",
                render_job(job, site, config_file=frozen, logs=logs),
            )
            for number, job in enumerate(jobs, start=1)
        ),
    ]


def write_scripts(folder: Path, files: Sequence[tuple[Path, str]]) -> Path:
    """Write what `scripts_of` made for a folder, to be queued by hand.

    Returns:
        The script that queues them, each after the one before it.

    Raises:
        ConfigError: If there is something in the folder: jobs that are queued may still read it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: expected a new or empty folder for the scripts, since queued jobs may read "
            "what is there; name another, or remove it"
        )
    # Slurm does not make the folder of a job's log, and the job fails without a word.
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    scripts = [path.resolve() for path, _ in files[1:]]
    for path, text in (*files, (folder / SUBMIT_FILE, render_submission(scripts))):
        write_text(path, text)
    return folder / SUBMIT_FILE


def submit(
    run_dir: RunDir, jobs: Sequence[Job], files: Sequence[tuple[Path, str]]
) -> list[SubmittedJob]:
    """Write what `scripts_of` made and submit the jobs, each after the one before it succeeded.

    The configuration is frozen with them: editing the user's file changes nothing that is queued.

    Raises:
        StageError: If jobs of this run are in the queue already; if sbatch refuses, when what it had
            taken of the chain is cancelled; or if it does not answer.
        ArtifactError: If another process is submitting or cancelling jobs of this run.
    """
    require_slurm()
    with _alone(run_dir):
        alive = [job for job in submitted_jobs(run_dir) if job_state(job.job_id) in ALIVE]
        if alive:
            raise StageError(
                f"jobs of this run are in the queue already: {_listed(alive)}; wait for them, or "
                f"`stir-train cancel {run_dir.path}`"
            )
        remove_leftovers(run_dir.path / SLURM)
        (run_dir.path / LOGS / SLURM).mkdir(parents=True, exist_ok=True)
        for path, text in files:
            write_text(path, text)
        chain = secrets.token_hex(4)
        planned = [
            PlannedJob(job.name, job.stages, f"{job.name}-{chain}", str(path))
            for job, (path, _) in zip(jobs, files[1:], strict=True)
        ]
        return _submit_planned(run_dir, planned)


def _submit_planned(run_dir: RunDir, planned: list[PlannedJob]) -> list[SubmittedJob]:
    _write_chain(run_dir, planned)
    done: list[SubmittedJob] = []
    for i, job in enumerate(planned):
        after = done[-1].job_id if done else None
        try:
            job_id = _job_id_of(job, after)
        except NoAnswerError as error:
            so_far = f"queued so far: {_listed(done)}" if done else "nothing else is queued"
            raise StageError(
                f"{error}; {so_far}. When Slurm answers, `stir-train status {run_dir.path}` shows "
                f"what it has taken of the chain, and `stir-train cancel {run_dir.path}` takes it back"
            ) from error
        except StageError as error:
            raise StageError(f"{error}{_take_back(done)}") from error
        planned[i] = replace(job, job_id=job_id)
        _write_chain(run_dir, planned)
        done.append(SubmittedJob(job.name, job.stages, job_id, job.script))
    return done


def _job_id_of(job: PlannedJob, after: int | None) -> int:
    """Queue a job; where sbatch does not tell its id, the queue may."""
    try:
        return submit_script(Path(job.script), name=job.queue_name, after=after)
    except NoAnswerError:
        found = jobs_named([job.queue_name])
        if job.queue_name not in found:
            raise
        return found[job.queue_name]


def _take_back(done: Sequence[SubmittedJob]) -> str:
    """Cancel what was queued of a chain; say so."""
    kept: list[SubmittedJob] = []
    for job in reversed(done):
        try:
            cancel_job(job.job_id)
        except StageError:
            kept.append(job)
    if kept:
        return f"; of the chain these could not be cancelled: {_listed(kept)}"
    return f"; cancelled again: {_listed(done)}" if done else ""


def recorded_jobs(run_dir: RunDir) -> list[PlannedJob]:
    """The last chain that was planned for a run, as far as is written down.

    Raises:
        ArtifactError: If the record is damaged.
    """
    path = run_dir.path / SLURM / JOBS_FILE
    if not path.is_file():
        return []
    try:
        return TypeAdapter(list[PlannedJob]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is damaged: which jobs of this run are in the queue is not known; look with "
            "`squeue --me`, cancel what is this run's, and remove the file"
        ) from error


def submitted_jobs(run_dir: RunDir) -> list[SubmittedJob]:
    """The last chain that was submitted for a run, with the jobs that only the queue knows of.

    Raises:
        StageError: If some ids are not written down and Slurm cannot be asked.
        ArtifactError: If the record is damaged.
    """
    recorded = recorded_jobs(run_dir)
    lost = [job.queue_name for job in recorded if job.job_id is None]
    found = jobs_named(lost) if lost else {}
    ids = [(job, job.job_id or found.get(job.queue_name)) for job in recorded]
    return [
        SubmittedJob(job.name, job.stages, job_id, job.script)
        for job, job_id in ids
        if job_id is not None
    ]


def cancel(run_dir: RunDir) -> list[SubmittedJob]:
    """Cancel what is left of a run's chain, the last job first; return what was cancelled.

    Raises:
        StageError: If Slurm does not answer, or does not cancel a job.
        ArtifactError: If another process is submitting or cancelling jobs of this run.
    """
    require_slurm()
    if not recorded_jobs(run_dir):
        return []
    with _alone(run_dir):
        alive = [job for job in submitted_jobs(run_dir) if job_state(job.job_id) in ALIVE]
        for job in reversed(alive):
            cancel_job(job.job_id)
    return alive


def _alone(run_dir: RunDir) -> AbstractContextManager[None]:
    """Nobody else changes the chain."""
    # Not by the run's own lock: that is its jobs', the first of which may start at once.
    return RunDir(run_dir.path / SLURM).locked()


def _write_chain(run_dir: RunDir, planned: Sequence[PlannedJob]) -> None:
    write_json(run_dir.path / SLURM / JOBS_FILE, [asdict(job) for job in planned])


def _listed(jobs: Sequence[SubmittedJob]) -> str:
    return ", ".join(f"{job.job_id} ({job.name})" for job in jobs)
