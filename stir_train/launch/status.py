"""Where a run is: stages, chunks, jobs, the last failure, and what to do next."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from stir_train.artifacts.run_dir import CHECKSUMS, CONFIG_FILE, FAILURE_FILE, RunDir
from stir_train.config.load import load_config
from stir_train.config.pipeline import STAGE_NAMES, stages_off
from stir_train.config.run import RunConfig
from stir_train.errors import ArtifactError, StageError
from stir_train.launch.slurm import LOGS, SLURM, recorded_jobs, submitted_jobs
from stir_train.launch.slurm_commands import ALIVE, job_state
from stir_train.runtime.upstream import end_of_run

UNKNOWN = "UNKNOWN"
CHUNK = ("rollouts-", "candidates-", "trials-")


@dataclass(frozen=True)
class StageStatus:
    """One line.

    Attributes:
        name: The stage.
        state: ``done``, ``unfinished``, ``to do``, ``off``, or ``not made`` after a stage that ended the run.
        progress: Chunks made so far, or the finished stage's figures.
        job: Slurm's id and state of the job that makes it, if one was submitted.
    """

    name: str
    state: str
    progress: str
    job: str


@dataclass(frozen=True)
class RunStatus:
    """Where a run is.

    Attributes:
        stages: Every stage.
        queue: Why the jobs' states are not known, where they are not.
        failure: The last attempt's, if it failed.
        advice: What to do.
    """

    stages: list[StageStatus]
    queue: str
    failure: str
    advice: str


@dataclass(frozen=True)
class _Queue:
    """Job id and state by stage, and why they are not known if they are not."""

    jobs: dict[str, tuple[int, str]]
    trouble: str

    @property
    def is_alive(self) -> bool:
        return any(state in ALIVE for _, state in self.jobs.values())


def run_status(directory: Path) -> RunStatus:
    """Read a run's state from its directory and, where there is Slurm, from the queue.

    Raises:
        ArtifactError: If there is no run.
    """
    config_file = directory / CONFIG_FILE
    if not config_file.is_file() and not (directory / SLURM).is_dir():
        hint = "; give the run's directory, not its configuration" if directory.is_file() else ""
        raise ArtifactError(f"{directory}: no run here (no {CONFIG_FILE}){hint}")
    run_dir = RunDir(directory)
    off = stages_left_out(run_dir)
    end = end_of_run(run_dir, off)
    queue = _ask_queue(run_dir)
    jobs = queue.jobs
    stages = []
    for name in STAGE_NAMES:
        stage = run_dir.stage(name)
        if stage.is_complete:
            state, progress = "done", _figures(stage.summary())
        elif name in off:
            state, progress = "off", ""
        else:
            state = "unfinished" if stage.path.exists() else "not made" if end else "to do"
            progress = _chunks(stage.path)
        queued = "" if name not in jobs else f"{jobs[name][0]} {jobs[name][1].lower()}"
        stages.append(StageStatus(name, state, progress, queued))
    if end:
        return RunStatus(stages, queue.trouble, "", f"ended at {end.stage}: {end.reason}")
    failure = "" if all(s.state in ("done", "off") for s in stages) else _last_failure(run_dir)
    return RunStatus(stages, queue.trouble, failure, _advice(stages, failure, queue))


def stages_left_out(run_dir: RunDir) -> frozenset[str]:
    """Stages that a run's own configuration leaves out; none if it holds no configuration."""
    config_file = run_dir.path / CONFIG_FILE
    if not config_file.is_file():
        return frozenset()
    return stages_off(load_config(RunConfig, config_file))


def _ask_queue(run_dir: RunDir) -> _Queue:
    """Ask Slurm after each job of the chain, until it does not answer."""
    recorded = recorded_jobs(run_dir)
    jobs = {n: (job.job_id, UNKNOWN) for job in recorded if job.job_id for n in job.stages}
    if not recorded:
        return _Queue({}, "")
    if shutil.which("scontrol") is None:
        return _Queue(jobs, "jobs were submitted, and there is no Slurm here to ask after them")
    try:
        for job in submitted_jobs(run_dir):
            state = job_state(job.job_id)
            for name in job.stages:
                jobs[name] = (job.job_id, state)
    except StageError as error:
        return _Queue(jobs, f"the jobs' states are not known: {error}")
    return _Queue(jobs, "")


def _chunks(path: Path) -> str:
    checksums = path / CHECKSUMS
    count = sum(1 for f in checksums.rglob("*") if f.name.startswith(CHUNK))
    return f"{count} chunks made" if count else ""


def _figures(summary: dict[str, object]) -> str:
    shown = [
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in summary.items()
    ]
    return ", ".join(shown[:3])


def _last_failure(run_dir: RunDir) -> str:
    """The message of the newest attempt, if it failed."""
    attempts = sorted(
        (run_dir.path / LOGS).glob("attempt_*"), key=lambda p: int(p.name.rpartition("_")[2])
    )
    if not attempts or not (attempts[-1] / FAILURE_FILE).is_file():
        return ""
    held = json.loads((attempts[-1] / FAILURE_FILE).read_text(encoding="utf-8"))
    return (
        f"{attempts[-1].name}: rank {held['rank']} on {held['host']}: {held['kind']}: "
        f"{held['message']}"
    )


def _advice(stages: list[StageStatus], failure: str, queue: _Queue) -> str:
    left = [s.name for s in stages if s.state not in ("done", "off")]
    if not left:
        return "complete"
    if queue.is_alive:
        return f"in the queue; next: {left[0]}"
    if queue.trouble:
        return f"ask again where Slurm answers: jobs may be at work on {left[0]}"
    again = "submit again (--submit)" if queue.jobs else "run the same command again"
    if failure:
        return f"mend what failed, then {again}: it goes on at {left[0]}"
    return f"{again}: it goes on at {left[0]}"
