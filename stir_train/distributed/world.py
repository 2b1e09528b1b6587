"""The process environment, read in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """This process among its ranks; alone it is rank 0 of 1.

    Attributes:
        rank: From 0.
        size: Number of ranks.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0


def world_from_environment() -> World:
    """Read the variables that torchrun, deepspeed and accelerate set, or those of srun."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and size in os.environ:
            return World(int(os.environ[rank]), int(os.environ[size]))
    return World()


def usable_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
