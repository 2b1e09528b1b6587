"""Open a run for one attempt: join the launch, lock the directory, record what was asked."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from stir_train.artifacts.atomic import write_json, write_text
from stir_train.artifacts.attempts import (
    FAILURE_FILE,
    PROVENANCE_FILE,
    FailureRecord,
    ProcessRecord,
    save_process,
)
from stir_train.artifacts.run_dir import CONFIG_FILE, METRICS_FILE, RunDir
from stir_train.config.base import imported_by
from stir_train.config.import_path import load_object
from stir_train.config.load import dump_config
from stir_train.config.run import RunConfig
from stir_train.distributed.launch import usable_cores
from stir_train.distributed.preemption import Preempted
from stir_train.distributed.world import PeerError, World, open_world
from stir_train.errors import ArtifactError, StageError
from stir_train.models.public_name import public_name
from stir_train.monitoring.console import caution, make_console
from stir_train.monitoring.metrics import Metrics, MetricsFile, WandbLabels, open_metrics
from stir_train.runtime.context import RunContext, set_threads
from stir_train.runtime.resources import Resources
from stir_train.runtime.upstream import require_sources

LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "accelerate", "datasets", "safetensors")


@contextmanager
def open_run(
    config: RunConfig,
    console: Console,
    argv: Sequence[str],
    *,
    stages: Sequence[str] = (),
    is_worker: bool = False,
) -> Iterator[RunContext]:
    """Join the launch, lock the run directory, record this attempt, and yield the context.

    Args:
        config: The run.
        console: Where rank 0 speaks; other ranks write to the attempt's logs.
        argv: The command, for the record.
        stages: What will be made.
        is_worker: Only make chunks, beside other workers that share nothing but the disk.

    Raises:
        ArtifactError: If what these stages read is not there; then nothing is written.
    """
    with (
        open_world() as world,
        enter_run(config, console, argv, world, stages=stages, is_worker=is_worker) as context,
    ):
        yield context


@contextmanager
def read_run(config: RunConfig, console: Console) -> Iterator[RunContext]:
    """The context of a run that is only read: no lock, no attempt, and nothing written to it.

    Raises:
        ArtifactError: If there is no run.
    """
    run_dir = RunDir(config.directory)
    if not (run_dir.path / CONFIG_FILE).is_file():
        raise ArtifactError(
            f"{run_dir.path}: no run here (no {CONFIG_FILE}); if it was made with overrides "
            "(name=...), give its directory"
        )
    with look_at_run(config, console) as context:
        yield context


@contextmanager
def look_at_run(config: RunConfig, console: Console) -> Iterator[RunContext]:
    """The context of a run that is there or not, to which nothing is written, and nothing made for it."""
    run_dir = RunDir(config.directory)
    with open_world() as world:
        _prepare(config)
        resources = Resources(config, world)
        try:
            yield RunContext(
                config, run_dir, run_dir.path, world, False, Metrics([]), console, resources
            )
        finally:
            resources.close()


@contextmanager
def enter_run(
    config: RunConfig,
    console: Console,
    argv: Sequence[str],
    world: World,
    *,
    stages: Sequence[str] = (),
    is_worker: bool = False,
) -> Iterator[RunContext]:
    """The same in a launch that was joined before, which may enter one run after another."""
    run_dir = RunDir(config.directory)

    def attempt_opened() -> str:
        require_sources(config, stages)  # what is refused leaves no trace
        return _open_attempt(run_dir, config, argv, stack, is_worker)

    with ExitStack() as stack:
        if is_worker and world.size > 1:
            raise StageError("--worker is for processes by themselves, as in a job array")
        _prepare(config)
        attempt = run_dir.path / str(world.on_main("attempt", attempt_opened))
        if not world.is_main:
            log = stack.enter_context((attempt / f"rank_{world.rank}.log").open("a"))
            console = make_console(log)
        metrics = stack.enter_context(_metrics(config, run_dir, attempt, console, world, is_worker))
        resources = Resources(config, world)
        context = RunContext(
            config, run_dir, attempt, world, is_worker, metrics, console, resources
        )
        try:
            yield context
        except Exception as error:
            _record_failure(attempt, world, error)
            raise
        finally:
            resources.close()


def _prepare(config: RunConfig) -> None:
    """What the process does before it enters a run: what cannot be found is refused before anything runs."""
    set_threads(config)
    for setting, path in imported_by(config).items():
        load_object(path, kind=setting)


def _open_attempt(
    run_dir: RunDir, config: RunConfig, argv: Sequence[str], stack: ExitStack, is_worker: bool
) -> str:
    """Lock the run and open an attempt; its directory's name under the run's."""
    stack.enter_context(run_dir.locked(shared=is_worker))
    attempt = run_dir.new_attempt()
    write_json(attempt / PROVENANCE_FILE, provenance(argv))
    stack.callback(_note_end, attempt, _note_begin(attempt))
    write_text(attempt / CONFIG_FILE, dump_config(config))
    if not (run_dir.path / CONFIG_FILE).is_file():  # later ones replace it once a stage takes them
        write_text(run_dir.path / CONFIG_FILE, dump_config(config))
    return str(attempt.relative_to(run_dir.path))


def _note_begin(attempt: Path) -> ProcessRecord:
    process = ProcessRecord(socket.gethostname(), os.getpid(), time.time())
    save_process(attempt, process)
    return process


def _note_end(attempt: Path, process: ProcessRecord) -> None:
    save_process(attempt, dataclasses.replace(process, ended_at=time.time()))


def _metrics(
    config: RunConfig,
    run_dir: RunDir,
    attempt: Path,
    console: Console,
    world: World,
    is_worker: bool,
) -> AbstractContextManager[Metrics]:
    """Every sink on rank 0, a file of its own for a worker, none on other ranks."""
    if not world.is_main:
        return Metrics([])
    if is_worker:
        return Metrics([MetricsFile(attempt / METRICS_FILE)])
    return open_metrics(
        run_dir.path,
        wandb_mode=_wandb_mode(config, world),
        labels=_wandb_labels(config),
        config=json.loads(config.model_dump_json()) | {"git_sha": _git_sha()},
        warn=lambda sentence: console.print(caution(sentence), soft_wrap=True),
    )


def _wandb_labels(config: RunConfig) -> WandbLabels:
    task, model = config.task.name, public_name(config.model.name)
    tracking = config.tracking
    return WandbLabels(
        project=tracking.project,
        name=config.name,
        group=f"{task} {model}" if tracking.group is None else tracking.group,
        tags=(task, model, config.effort, f"seed-{config.seed}", *tracking.tags),
    )


def _wandb_mode(config: RunConfig, world: World) -> str:
    mode = config.tracking.wandb
    if mode != "auto":
        return mode
    return "offline" if world.launch.in_slurm_job else "online"


def _record_failure(attempt: Path, world: World, error: Exception) -> None:
    """Leave word of what went wrong; of several ranks the first to fail is the cause."""
    if isinstance(error, Preempted | PeerError):
        return
    failure = FailureRecord(
        world.rank,
        world.launch.host,
        type(error).__name__,
        str(error),
        traceback=traceback.format_exc(),
    )
    try:
        with (attempt / FAILURE_FILE).open("x", encoding="utf-8") as stream:
            json.dump(dataclasses.asdict(failure), stream, indent=1)
    except FileExistsError:
        return  # another rank failed before


def provenance(argv: Sequence[str]) -> dict[str, object]:
    """What made this attempt: command, code, libraries, machine."""
    return {
        "argv": list(argv),
        "git_sha": _git_sha(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "machine": platform.machine(),
        "cores": usable_cores(),
        "accelerators": _lines_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "executable": sys.executable,
    }


def _git_sha() -> str:
    return "".join(_lines_of("git", "rev-parse", "HEAD"))


def _lines_of(*command: str) -> list[str]:
    """What a command prints; nothing where it fails or there is no such command."""
    try:
        completed = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return []
    return completed.stdout.splitlines() if completed.returncode == 0 else []
