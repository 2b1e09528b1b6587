"""What a cluster offers and asks for: one YAML file a site."""

from __future__ import annotations

import difflib
import shlex
import string
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    StrictBool,
    model_validator,
)

from stir_train.config.base import FrozenConfig

OWN_OPTIONS = frozenset(
    [
        "nodes",
        "ntasks-per-node",
        "cpus-per-task",
        "time",
        "array",
        "requeue",
        "signal",
        "job-name",
        "output",
        "open-mode",
        "dependency",
        "kill-on-invalid-dep",
        "parsable",
        "wrap",
    ]
)
"""Of sbatch, which have settings here or are the chain's own."""
PLACEHOLDERS = ("num_gpus",)


def _as_typed(value: Any) -> Any:
    """A whole number as the text that it was; a float's zeros are lost already."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _on_one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected one line of text, without control characters")
    return text


def _without_backslash(text: str) -> str:
    if "\\" in text or not text:
        raise ValueError("expected text, without backslashes, which sbatch reads its own way")
    return text


Line = Annotated[str, AfterValidator(_on_one_line)]
Words = Annotated[Line, AfterValidator(_without_backslash)]
"""Text of one line, without backslashes, to which sbatch gives a meaning."""
TimeLimit = Annotated[
    str,
    BeforeValidator(_as_typed),
    Field(pattern=r"^(\d+-)?\d+(:\d+){0,2}$|^(UNLIMITED|infinite)$"),
]
"""Minutes, or `[days-]hours[:minutes[:seconds]]`, as sbatch takes it."""
OptionName = Annotated[str, Field(pattern=r"^(--)?[a-z][a-z0-9-]+$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class StageResources(FrozenConfig):
    """What one job takes instead of the site's own figures."""

    nodes: PositiveInt | None = None
    """Nodes."""
    time: TimeLimit | None = None
    """Time limit."""


class SiteConfig(FrozenConfig):
    """A cluster, as jobs see it."""

    nodes: PositiveInt = 1
    """Nodes of a job that generates or trains."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs of a node; 0 runs on CPUs."""
    gpu_option: Words = "--gpus-per-node={num_gpus}"
    """How sbatch is asked for them."""
    gpu_memory_gib: PositiveFloat | None = None
    """Memory of a GPU, to check the estimate against."""
    tasks_per_node: PositiveInt | None = None
    """Processes of a node; None is one a GPU, or one."""
    cpus_per_task: PositiveInt = 1
    """CPU cores of a process."""
    time: TimeLimit = "04:00:00"
    """Time limit of a job; one that reaches it is requeued and goes on."""
    array: int = Field(default=0, ge=0)
    """Sample rollouts by a job array of so many independent workers; 0 by one job of all nodes."""
    stages: dict[str, StageResources] = Field(default_factory=dict)
    """Other resources for some jobs, by name, as in `{evaluate: {nodes: 8}}`."""
    options: dict[OptionName, StrictBool | Annotated[Words, BeforeValidator(_as_typed)]] = Field(
        default_factory=dict
    )
    """More sbatch options: partition, account, qos, constraint, mem ...; true for one that takes no
    value, as in `{exclusive: true}`, false to leave it out."""
    modules: tuple[Words, ...] = ()
    """Environment modules to load."""
    environment: dict[VariableName, Annotated[Line, BeforeValidator(_as_typed)]] = Field(
        default_factory=dict
    )
    """Variables to export."""
    setup: tuple[str, ...] = ()
    """Shell lines run before the command, as in activating a virtual environment."""
    command: str | None = None
    """The `stir-train` to run; None is the one that submits."""
    signal_seconds: PositiveInt = 120
    """How long before the time limit the processes are asked to stop at a boundary."""
    max_requeues: int = Field(default=20, ge=0)
    """How often a job puts itself back in the queue."""

    @model_validator(mode="after")
    def _options_are_ours_once(self) -> Self:
        twice = sorted(OWN_OPTIONS & {name.removeprefix("--") for name in self.options})
        if twice:
            raise ValueError(f"options: {', '.join(twice)} have settings of their own here")
        return self

    @model_validator(mode="after")
    def _texts_can_be_filled_in(self) -> Self:
        try:
            parts = list(string.Formatter().parse(self.gpu_option))
            shlex.split(self.command or "")
        except ValueError as error:
            raise ValueError(f"gpu_option or command: {error}") from error
        for _, name, form, conversion in parts:
            if name in (None, *PLACEHOLDERS) and not form and not conversion:
                continue
            near = difflib.get_close_matches(name or "", PLACEHOLDERS, n=1, cutoff=0.0)
            raise ValueError(f"gpu_option: no placeholder {{{name}}}; did you mean {{{near[0]}}}?")
        return self

    @property
    def gpu_words(self) -> tuple[str, ...]:
        """What sbatch is told of a node's GPUs."""
        if not self.gpus_per_node:
            return ()
        return tuple(self.gpu_option.format(num_gpus=self.gpus_per_node).split())

    @property
    def processes_per_node(self) -> int:
        """Processes of a node."""
        return self.tasks_per_node or self.gpus_per_node or 1
