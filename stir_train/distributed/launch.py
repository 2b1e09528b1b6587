"""Who am I among the processes of this launch: read once from torchrun's, srun's or no environment."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from stir_train.errors import StageError

TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""Where a port is derived for an `srun` that names none: below the ephemeral range."""
START = "torchrun --standalone --no-python"
"""Starts several processes on one machine."""


@dataclass(frozen=True)
class Launch:
    """A process's place in its launch.

    Attributes:
        rank, size: Among all processes.
        local_rank, local_size: Among those of this host.
        host: This host's name.
        address, port: Where rank 0 is met; empty when alone.
        restart: How often the launcher has restarted the group.
        agent_store: Whether the launcher itself holds the meeting point (torchrun does).
        in_slurm_job: Whether a SLURM job started this, through whatever launcher.
        launcher: ``torchrun`` (also deepspeed and accelerate), ``srun`` or ``alone``.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    host: str = "localhost"
    address: str = ""
    port: int = 0
    restart: str = "0"
    agent_store: bool = False
    launcher: str = "alone"
    in_slurm_job: bool = False


def detect_launch(environment: Mapping[str, str]) -> Launch:
    """Read the launch from environment variables.

    ``srun`` counts as a launch only inside a step of several tasks, so that a command typed in an
    allocation runs alone.

    Raises:
        StageError: If a launcher set some of its variables and not the others.
    """
    host = socket.gethostname()
    if "RANK" in environment and "WORLD_SIZE" in environment:
        missing = [name for name in TORCH_VARIABLES if name not in environment]
        if missing:
            raise StageError(
                f"the environment has RANK and WORLD_SIZE but not {', '.join(missing)}; launch with "
                "torchrun, deepspeed, accelerate launch or srun"
            )
        return Launch(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment["LOCAL_RANK"]),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
            host=host,
            address=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
            restart=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
            agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            launcher="torchrun",
            in_slurm_job="SLURM_JOB_ID" in environment,
        )
    size = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if "SLURM_PROCID" not in environment or size == 1:
        return Launch(host=host, in_slurm_job="SLURM_JOB_ID" in environment)
    per_node = first_count(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    job = int(environment.get("SLURM_JOB_ID", "0"))
    step = int(environment.get("SLURM_STEP_ID", "0"))
    return Launch(
        rank=int(environment["SLURM_PROCID"]),
        size=size,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=per_node,
        host=host,
        address=environment.get("MASTER_ADDR")
        or first_host(environment.get("SLURM_STEP_NODELIST", host)),
        port=int(environment.get("MASTER_PORT", FIRST_PORT + (job * 16 + step) % NUM_PORTS)),
        restart=environment.get("SLURM_RESTART_COUNT", "0"),
        launcher="srun",
        in_slurm_job=True,
    )


def first_host(node_list: str) -> str:
    """The first name of a Slurm host list: ``gpu[003-006,9],cpu1`` gives ``gpu003``."""
    match = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", node_list)
    assert match is not None  # every part of the pattern may be empty
    prefix, first, suffix = match.groups()
    return f"{prefix}{first or ''}{suffix or ''}"


def first_count(tasks_per_node: str) -> int:
    """Tasks of the first node: ``8(x3),4`` gives 8."""
    match = re.match(r"\d+", tasks_per_node)
    return int(match.group()) if match else 1


def usable_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
