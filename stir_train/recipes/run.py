"""Chain the stages of a run, skipping what is done."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from stir_train.artifacts.atomic import write_json, write_text
from stir_train.artifacts.run_dir import RunDir
from stir_train.config.load import dump_config
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.config.run import RunConfig
from stir_train.distributed.world import usable_cores
from stir_train.export.adapter import ADAPTER_DIRECTORY
from stir_train.monitoring.metrics import open_metrics
from stir_train.recipes.compare import RESULTS_FILE
from stir_train.recipes.context import RunContext, set_threads
from stir_train.recipes.distill import run_distill, run_steered
from stir_train.recipes.evaluate import load_results, results_table, run_evaluate
from stir_train.recipes.harvest import run_basis, run_harvest, run_rollout
from stir_train.recipes.report import PAGE, run_report
from stir_train.recipes.tune import run_tune
from stir_train.recipes.validate import run_validate
from stir_train.recipes.value import run_value
from stir_train.steering.artifacts import BASIS_FILE

LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "accelerate", "datasets", "safetensors")


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline: its verb on the command line, its directory, what it does."""

    verb: str
    directory: str
    run: Callable[[RunContext], None]


STAGES = tuple(
    Stage(verb, STAGE_DIRECTORIES[verb], run)
    for verb, run in (
        ("rollout", run_rollout),
        ("harvest", run_harvest),
        ("basis", run_basis),
        ("validate", run_validate),
        ("value", run_value),
        ("tune", run_tune),
        ("steer", run_steered),
        ("distill", run_distill),
        ("evaluate", run_evaluate),
        ("report", run_report),
    )
)


@contextmanager
def open_run(config: RunConfig, console: Console, argv: Sequence[str]) -> Iterator[RunContext]:
    """Lock the run directory, record what this attempt is, and yield the context."""
    run_dir = RunDir(config.directory)
    set_threads(config)
    with run_dir.locked():
        attempt = run_dir.new_attempt()
        write_json(attempt / "provenance.json", provenance(argv))
        write_text(run_dir.path / "config.yaml", dump_config(config))
        with open_metrics(
            run_dir.path,
            wandb_mode=config.tracking.wandb,
            project=config.tracking.project,
            name=config.name,
            config=json.loads(config.model_dump_json()),
        ) as metrics:
            context = RunContext(config, run_dir, metrics, console)
            try:
                yield context
            finally:
                context.close()


def run_stages(context: RunContext, verbs: Sequence[str], *, redo: bool) -> None:
    """Run the named stages in pipeline order; with ``redo`` they and all later ones are remade."""
    if redo:
        first = min(i for i, stage in enumerate(STAGES) if stage.verb in verbs)
        context.run_dir.discard([stage.directory for stage in STAGES[first:]])
    for stage in STAGES:
        if stage.verb in verbs:
            stage.run(context)


def provenance(argv: Sequence[str]) -> dict[str, object]:
    """What made this attempt: command, code, libraries, machine."""
    return {
        "argv": list(argv),
        "git_sha": _git_sha(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "machine": platform.machine(),
        "cores": usable_cores(),
        "executable": sys.executable,
    }


def _git_sha() -> str:
    try:
        completed = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return completed.stdout.strip()


def show_outcome(context: RunContext, verbs: Sequence[str]) -> None:
    """After an evaluation: the results table and where everything is."""
    evaluation = context.stage(STAGE_DIRECTORIES["evaluate"])
    if "evaluate" not in verbs or not evaluation.is_complete:
        return
    context.console.print(results_table(load_results(context)))
    run = context.run_dir.path
    for label, path in (
        ("control basis", run / STAGE_DIRECTORIES["basis"] / BASIS_FILE),
        ("LoRA adapter", run / STAGE_DIRECTORIES["distill"] / ADAPTER_DIRECTORY),
        ("results", evaluation.path / RESULTS_FILE),
        ("report", run / STAGE_DIRECTORIES["report"] / PAGE),
        ("metrics", context.run_dir.metrics_file),
    ):
        if path.exists():
            context.console.print(f"{label:>14}  {path}", soft_wrap=True)
