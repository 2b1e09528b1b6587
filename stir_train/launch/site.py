"""What a cluster offers and asks for: one YAML file a site."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from stir_train.config.base import FrozenConfig


class StageResources(FrozenConfig):
    """What one job takes instead of the site's own figures."""

    nodes: PositiveInt | None = None
    """Nodes."""
    time: str | None = None
    """Time limit."""


class SiteConfig(FrozenConfig):
    """A cluster, as jobs see it."""

    nodes: PositiveInt = 1
    """Nodes of a job that generates or trains."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs of a node; 0 runs on CPUs."""
    gpu_option: str = "--gpus-per-node={num_gpus}"
    """How sbatch is asked for them."""
    gpu_memory_gib: PositiveFloat | None = None
    """Memory of a GPU, to check the estimate against."""
    tasks_per_node: PositiveInt | None = None
    """Processes of a node; None is one a GPU, or one."""
    cpus_per_task: PositiveInt = 1
    """CPU cores of a process."""
    time: str = "04:00:00"
    """Time limit of a job; one that reaches it is requeued and goes on."""
    array: int = Field(default=0, ge=0)
    """Sample rollouts by a job array of so many independent workers; 0 by one job of all nodes."""
    stages: dict[str, StageResources] = Field(default_factory=dict)
    """Other resources for some jobs, by name, as in `{evaluate: {nodes: 8}}`."""
    options: dict[str, str | int] = Field(default_factory=dict)
    """More sbatch options: partition, account, qos, constraint, mem ..."""
    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    environment: dict[str, str] = Field(default_factory=dict)
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
        own = {"nodes", "ntasks-per-node", "cpus-per-task", "time", "array", "requeue", "signal"}
        twice = sorted(own & {name.removeprefix("--") for name in self.options})
        if twice:
            raise ValueError(f"options: {', '.join(twice)} have settings of their own here")
        return self

    @property
    def processes_per_node(self) -> int:
        """Processes of a node."""
        return self.tasks_per_node or self.gpus_per_node or 1
