"""Start the ranks of a launch as processes, without a launcher in between."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.support.forked import Forked

TIMEOUT_SECONDS = 600


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun would set."""
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def start_ranks(size: int, argv: Sequence[str], log: Path) -> list[Forked]:
    """Start ``size`` ranks of ``python ARGV``; their output goes to ``log.RANK``."""
    port = free_port()
    logs = [Path(f"{log}.{rank}") for rank in range(size)]
    for one in logs:
        one.unlink(missing_ok=True)
    return [
        Forked(argv, rank_environment(rank, size, port), one, one) for rank, one in enumerate(logs)
    ]


def run_ranks(size: int, argv: Sequence[str], log: Path) -> list[int]:
    """Run ranks to their ends; return their exit statuses. None outlives the call."""
    ranks = start_ranks(size, argv, log)
    try:
        return [rank.wait(TIMEOUT_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.end()


def outputs(size: int, log: Path) -> str:
    """What the ranks printed, for a failing test's message."""
    return "\n".join(
        f"--- rank {rank}\n{Path(f'{log}.{rank}').read_text(errors='replace')[-3000:]}"
        for rank in range(size)
    )
