"""What can be found wrong before anything is queued; on a login node, without torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.deepspeed import deepspeed_config
from stir_train.config.inputs import SPREAD
from stir_train.config.pretrained import EMBEDDED_PREFIX
from stir_train.config.run import RunConfig
from stir_train.errors import ConfigError, StirError
from stir_train.launch.estimate import GIB, Estimate, estimate, read_shape
from stir_train.launch.site import SiteConfig

EMBEDDED_ROOT = Path(__file__).parents[1] / "tasks" / "models"


@dataclass
class Preflight:
    """What was looked at.

    Attributes:
        problems: What would fail; nothing is queued while there is one.
        notes: What could not be looked at from here, or is worth knowing.
        estimate: What the run will need, if the model could be read.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    estimate: Estimate | None = None

    def require(self) -> None:
        """Stop if something would fail.

        Raises:
            ConfigError: Listing everything at once.
        """
        if self.problems:
            listed = "\n".join(f"  - {problem}" for problem in self.problems)
            raise ConfigError(f"nothing was queued:\n{listed}")


def preflight(
    config: RunConfig, site: SiteConfig, *, read_data: Callable[[RunConfig], None]
) -> Preflight:
    """Check settings, model, data, disk and memory against each other and the site.

    ``read_data`` reads the problems and cuts the splits, raising a `StirError` if it cannot.
    """
    found = Preflight()
    _check(found, lambda: deepspeed_config(config.train))
    num_ranks = site.nodes * site.processes_per_node
    if config.train.engine == "plain" and num_ranks > 1:
        found.problems.append(
            f"train.engine: plain trains in one process, the site starts {num_ranks}"
        )
    shards = config.model.shards
    if num_ranks % shards or site.processes_per_node % shards:
        found.problems.append(
            f"model.shards: {shards} ranks of one node hold a copy of the model, the site starts "
            f"{site.processes_per_node} on each of {site.nodes} nodes"
        )
    if config.model.device == SPREAD and site.processes_per_node > 1:
        found.problems.append(
            "model.device: spread gives all GPUs of a node to one process, the site starts "
            f"{site.processes_per_node}: set its tasks_per_node to 1"
        )
    if site.array and config.model.sharding != "none":
        found.problems.append(
            "array: the tasks of a job array are processes by themselves, and model.sharding="
            f"{config.model.sharding} takes several together; leave the site's array out"
        )
    _check_data(found, config, read_data)
    _check_model(found, config, site, num_ranks)
    free = shutil.disk_usage(_existing(config.output_dir)).free / GIB
    if found.estimate is not None and found.estimate.disk_gib > free:
        found.problems.append(
            f"output_dir: the run needs up to {found.estimate.disk_gib:.0f} GiB, "
            f"{config.output_dir} has {free:.0f} GiB free"
        )
    return found


def _check(found: Preflight, look: Callable[[], object]) -> None:
    try:
        look()
    except StirError as error:
        found.problems.append(str(error))


def _check_data(
    found: Preflight, config: RunConfig, read_data: Callable[[RunConfig], None]
) -> None:
    done = RunDir(config.directory).stage("rollout").is_complete
    completions = config.external.file
    if completions is not None and not completions.is_file():
        found.problems.append(f"external.file: no file {str(completions)!r}")
    remote = [
        s for s in config.task.sources if not Path(s).exists() and not s.startswith((".", "/"))
    ]
    if remote:
        found.notes.append(f"task.source: {', '.join(remote)} is read from the hub or its cache")
    elif not done:
        _check(found, lambda: read_data(config))


def _check_model(found: Preflight, config: RunConfig, site: SiteConfig, num_ranks: int) -> None:
    name = config.model.name
    embedded = name.startswith(EMBEDDED_PREFIX)
    directory = EMBEDDED_ROOT / name.removeprefix(EMBEDDED_PREFIX) if embedded else Path(name)
    if not directory.is_dir():
        if embedded or name.startswith((".", "/", "~")) or name.count("/") > 1:
            found.problems.append(f"model.name: no directory {name!r}")
        else:
            found.notes.append(
                f"model.name: {name} is read from the hub or its cache; not estimated"
            )
        return
    on_gpu = site.gpus_per_node > 0
    wide = config.model.dtype == "float32" or (config.model.dtype == "auto" and not on_gpu)
    try:
        shape = read_shape(directory, bytes_per_weight=4 if wide else 2)
    except StirError as error:
        found.problems.append(str(error))
        return
    if not list(directory.glob("*.safetensors")):
        found.problems.append(f"model.name: {directory} holds no safetensors weights")
    needs = estimate(config, shape, num_ranks=num_ranks, on_gpu=on_gpu)
    found.estimate = needs
    memory = site.gpu_memory_gib
    if memory is not None and config.model.device == SPREAD:
        memory *= site.gpus_per_node  # and what does not fit goes to the node's own memory
    if memory is not None and needs.generate_gib > memory:
        found.problems.append(
            f"generation needs up to {needs.generate_gib:.0f} GiB of a GPU, the site's have "
            f"{memory:.0f}: lower generation.max_rows, set generation.max_cache_tokens, or use "
            "model.sharding"
        )
    if memory is not None and needs.gradient_gib > memory:
        found.problems.append(
            f"directions need up to {needs.gradient_gib:.0f} GiB of a GPU, the site's have "
            f"{memory:.0f}: lower directions.max_batch_tokens"
        )
    if memory is not None and config.distill.enabled and needs.train_gib > memory:
        found.problems.append(
            f"distillation needs up to {needs.train_gib:.0f} GiB of a GPU, the site's have "
            f"{memory:.0f}: raise train.gradient_accumulation or train.zero_stage, or use "
            "train.dtype=bfloat16"
        )


def _existing(path: Path) -> Path:
    """The nearest directory above that exists."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
