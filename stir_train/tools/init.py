"""Write a run's configuration for a model and a task, deciding whatever can be found out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from stir_train.artifacts.atomic import write_text
from stir_train.config.commented import Decision, commented_yaml
from stir_train.config.effort import Effort
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.distributed.launch import START
from stir_train.errors import ConfigError
from stir_train.models.locate import GGUF_SUFFIX
from stir_train.tools.init_machine import fitting_decisions
from stir_train.tools.init_model import (
    ModelFacts,
    chat_decisions,
    effort_decision,
    generation_decisions,
    learning_decisions,
    model_decisions,
    read_model,
    steering_decisions,
)
from stir_train.tools.init_task import TaskFacts, read_task

HARVEST_SHARE = 0.5
"""At most, of a task with too few problems for the effort's splits: with few, no direction stands out of chance."""
TEST_SHARE = 2 / 3
"""Of what the harvest then leaves."""
MIN_PROBLEMS = 10


@dataclass(frozen=True)
class Wish:
    """What a first configuration is asked for.

    Attributes:
        model: Directory, hub id, ``.gguf`` file or ``embedded/NAME``.
        task: An embedded family, a known task, ``reasoning-gym:NAME``, a loader's import path, or a file.
        source: Of a public task, a copy at hand.
        parameters: Of a ``reasoning-gym:NAME``, a YAML mapping.
        output: The file; None names it after model and task, here.
        effort: How much is to be spent; None takes what the machine allows.
    """

    model: str
    task: str
    source: str | None = None
    parameters: str | None = None
    output: Path | None = None
    effort: Effort | None = None


def write_first_config(wish: Wish, console: Console) -> Path:
    """Decide settings, write them with their reasons, and say them; the model's weights stay unread.

    Raises:
        StirError: If the model or the task cannot be read.
        ConfigError: If the file is there already.
    """
    if wish.output is not None:
        _require_free(wish.output)
    task = read_task(wish.task, source=wish.source, parameters=wish.parameters)
    name = _run_name(wish.model, task.label)
    path = Path(f"{name}.yaml") if wish.output is None else wish.output
    _require_free(path)
    model = read_model(wish.model)
    decisions = _decide(name, model, task, wish.effort)
    title = (
        f"Written by `stir-train init {wish.model} {wish.task}`. What is not here has its default: `stir-train "
        "settings` lists them all."
    )
    write_text(path, commented_yaml(title, decisions))
    load_config(RunConfig, path)  # what was written is what a run takes
    for decision in decisions:
        console.print(f"{decision.key}: {decision.written}\n    {decision.reason}", soft_wrap=True)
    console.print(f"wrote {path}", soft_wrap=True)
    console.print(f"what the model is asked: stir-train data {path}", soft_wrap=True)
    processes = model.machine.num_processes
    start = f"{START} --nproc-per-node {processes} " if processes > 1 else ""
    console.print(f"what it costs: {start}stir-train run {path} --dry-run", soft_wrap=True)
    console.print(f"the run: {start}stir-train run {path}", soft_wrap=True)
    return path


def _require_free(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"{path} is there already; name another file with -o, or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: no directory {path.parent}")


def _run_name(model: str, task: str) -> str:
    last = Path(model).name.removesuffix(GGUF_SUFFIX)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{last}-{task}".lower()).strip("-._")[:100]


def _decide(name: str, model: ModelFacts, task: TaskFacts, asked: Effort | None) -> list[Decision]:
    """Every decision, in the order of the file."""
    effort = effort_decision(model, asked)
    decisions = [
        Decision("name", name, "The run, and its directory under `runs`."),
        effort,
        *model_decisions(model),
        *task.decisions,
        *chat_decisions(model, task.config),
        *_splits(task, effort),
        *generation_decisions(model, task.config),
        *steering_decisions(model),
        *learning_decisions(model),
    ]
    fitting = fitting_decisions(
        model.machine, model.shape, decisions, on_gpu=model.device.type != "cpu"
    )
    return [*decisions, *fitting]


def _splits(task: TaskFacts, effort: Decision) -> list[Decision]:
    """Sizes of the splits, where those of the effort do not fit the number of problems."""
    if task.num_problems is None:
        return []
    if task.num_problems < MIN_PROBLEMS:
        raise ConfigError(
            f"TASK: {task.label} has {task.num_problems} distinct problems; too few to learn from some, "
            f"choose on others and test on the rest: give at least {MIN_PROBLEMS}"
        )
    splits = RunConfig.model_validate({"name": "init", "effort": effort.value}).splits
    sizes = {
        "num_harvest": splits.num_harvest,
        "num_tune": splits.num_tune,
        "num_test": splits.num_test,
    }
    decisions = []
    if task.num_test:
        wanted = sizes.pop("num_test")
        count = task.num_test if effort.value != "quick" else min(wanted, task.num_test)
        reason = (
            f"Of the {task.num_test:,} problems of the official test split {task.config.test_split}, which "
            "alone is tested with."
        )
        decisions.append(Decision("splits.num_test", count, reason))
    if sum(sizes.values()) <= task.num_problems:
        return decisions
    reason = (
        f"There are {task.num_problems:,} distinct problems; effort {effort.value} would take "
        f"{sum(sizes.values()):,} of them."
    )
    fitting = _fitting(task.num_problems, sizes)
    return [
        *(Decision(f"splits.{name}", size, reason) for name, size in fitting.items()),
        *decisions,
    ]


def _fitting(num_problems: int, wanted: Mapping[str, int]) -> dict[str, int]:
    """Sizes of splits that there are problems for: the harvest's first, which decides whether there is anything to see."""
    harvest = min(wanted["num_harvest"], int(HARVEST_SHARE * num_problems))
    left = num_problems - harvest
    if "num_test" not in wanted:
        return {"num_harvest": harvest, "num_tune": min(wanted["num_tune"], left)}
    tune = min(wanted["num_tune"], int((1 - TEST_SHARE) * left))
    test = min(wanted["num_test"], left - tune)
    return {"num_harvest": harvest, "num_tune": tune, "num_test": test}
