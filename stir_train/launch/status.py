"""Where a run is: stages, chunks, jobs, the last failure, and what to do next."""

from __future__ import annotations

import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stir_train.artifacts.attempts import (
    RunningProcess,
    attempts_of,
    failure_of,
    running_processes,
)
from stir_train.artifacts.run_dir import CHECKSUMS, CONFIG_FILE, RunDir
from stir_train.config.load import load_config
from stir_train.config.pipeline import STAGE_NAMES, stages_off
from stir_train.config.run import RunConfig
from stir_train.errors import ArtifactError, StageError
from stir_train.launch.slurm import SLURM, recorded_jobs, submitted_jobs
from stir_train.launch.slurm_commands import ALIVE, job_state
from stir_train.monitoring.console import duration
from stir_train.runtime.upstream import WHY, End, abstains, end_of_run, stages_left_out

UNKNOWN = "UNKNOWN"
OVER = ("done", "off", "not made")
"""States of a stage that is not to be made any more."""
CHUNK = ("rollouts-", "candidates-", "trials-")


@dataclass(frozen=True)
class StageStatus:
    """One line.

    Attributes:
        name: The stage.
        state: ``done``, ``running``, ``unfinished``, ``to do``, ``off``, or ``not made`` for what the run found.
        progress: Chunks made so far, or the finished stage's figures.
        job: Slurm's id and state of the job that makes it, if one was submitted.
    """

    name: str
    state: str
    progress: str
    job: str


RunState = Literal[
    "running",
    "queued",
    "unknown",
    "failed",
    "stopped",
    "not begun",
    "ended",
    "abstained",
    "complete",
]
"""``unknown``: jobs were queued, and Slurm does not answer. ``ended``: a stage found nothing to go on with.
``abstained``: complete, and nothing was steered."""


@dataclass(frozen=True)
class RunStatus:
    """Where a run is.

    Attributes:
        state: In a word.
        stages: Every stage.
        running: The processes at work: host, id, and how far they are.
        queue: Why the jobs' states are not known, where they are not.
        failure: The last attempt's, if it failed.
        warning: What its rollouts say against its settings, if anything.
        advice: What to do.
    """

    state: RunState
    stages: list[StageStatus]
    running: list[str]
    queue: str
    failure: str
    warning: str
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
    config = load_config(RunConfig, config_file) if config_file.is_file() else None
    queue = _ask_queue(run_dir)
    found = running_processes(directory, host=socket.gethostname())
    stages = _stages(run_dir, config, queue, is_running=bool(found))
    is_over = all(s.state in OVER for s in stages)
    has_ended = _end(run_dir, config) is not None
    failure = "" if is_over or has_ended or found else _last_failure(run_dir)
    state = _state(run_dir, config, stages, is_running=bool(found), failure=failure, queue=queue)
    return RunStatus(
        state=state,
        stages=stages,
        running=[_described(process) for process in found],
        queue=queue.trouble,
        failure=failure,
        warning=_warning(run_dir),
        advice=_advice(state, run_dir, config, stages, queue),
    )


def _stages(
    run_dir: RunDir, config: RunConfig | None, queue: _Queue, *, is_running: bool
) -> list[StageStatus]:
    off = stages_off(config) if config is not None else frozenset()
    left_out = stages_left_out(run_dir, config) if config is not None else {}
    stages = []
    for name in STAGE_NAMES:
        stage = run_dir.stage(name)
        if stage.is_complete:
            state, progress = "done", _figures(stage.summary())
        elif name in off:
            state, progress = "off", ""
        elif name in left_out:
            state, progress = "not made", ""
        else:
            begun = "running" if is_running else "unfinished"
            state, progress = begun if stage.path.exists() else "to do", _chunks(stage.path)
        job = queue.jobs.get(name)
        stages.append(
            StageStatus(name, state, progress, "" if job is None else f"{job[0]} {job[1].lower()}")
        )
    return stages


def _state(
    run_dir: RunDir,
    config: RunConfig | None,
    stages: list[StageStatus],
    *,
    is_running: bool,
    failure: str,
    queue: _Queue,
) -> RunState:
    """One word for it: what works on it now before what became of it."""
    if is_running:
        return "running"
    if _end(run_dir, config) is not None:
        return "ended"
    if all(s.state in OVER for s in stages):
        return "abstained" if abstains(run_dir) else "complete"
    if queue.is_alive:
        return "queued"
    if queue.trouble:
        return "unknown"
    if failure:
        return "failed"
    return "stopped" if any(s.state in ("done", "unfinished") for s in stages) else "not begun"


def _end(run_dir: RunDir, config: RunConfig | None) -> End | None:
    return None if config is None else end_of_run(run_dir, stages_off(config))


def _described(found: RunningProcess) -> str:
    """Who works, and its last word."""
    who = f"on {found.process.host} (pid {found.process.pid})"
    if found.progress is None:
        return f"{who}: starting"
    ago = duration(max(0.0, time.time() - found.progress.at))
    return f"{who}: {found.progress} ({ago} ago)"


def _warning(run_dir: RunDir) -> str:
    """Of a finished rollout stage: that much was cut off, and what budget would not."""
    stage = run_dir.stage("rollout")
    figures = stage.summary() if stage.is_complete else {}
    if "proposed_budget" not in figures:
        return ""
    return (
        f"{figures['truncated_rate']:.1%} of the rollouts were cut off by the token budget; about "
        f"generation.max_new_tokens={figures['proposed_budget']} would cut off few"
    )


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
    return f"{count} chunk{'s' if count > 1 else ''} made" if count else ""


def _figures(summary: dict[str, object]) -> str:
    shown = [
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in summary.items()
    ]
    return ", ".join(shown[:3])


def _last_failure(run_dir: RunDir) -> str:
    """The message of the newest attempt, if it failed."""
    attempts = attempts_of(run_dir.path)
    failure = failure_of(attempts[-1]) if attempts else None
    if failure is None:
        return ""
    return (
        f"{attempts[-1].name}: rank {failure.rank} on {failure.host}: {failure.kind}: "
        f"{failure.message}"
    )


def _advice(
    state: RunState,
    run_dir: RunDir,
    config: RunConfig | None,
    stages: list[StageStatus],
    queue: _Queue,
) -> str:
    report = run_dir.path / "report" / "report.html"
    see = f"see {report}" if report.is_file() else ""
    end = _end(run_dir, config)
    if state == "ended" and end is not None:
        page = see or "run the same command again for a report of it"
        return f"ended at {end.stage}: {end.reason}; {page}"
    if state == "abstained":
        return f"{WHY}: `stir` is greedy decoding. {see}".rstrip()
    if state == "complete":
        return see or "nothing is left to do"
    following = next(s.name for s in stages if s.state not in OVER)
    if state == "running":
        return f"wait for it; it is at {following}"
    if state == "queued":
        return f"in the queue; next: {following}"
    if state == "unknown":
        return f"ask again where Slurm answers: jobs may be at work on {following}"
    again = "submit again (--submit)" if queue.jobs else "run the same command again"
    mend = f"mend what failed, then {again}" if state == "failed" else again
    return f"{mend}: it goes on at {following}"
