"""Start the ranks of a launch as processes, without a launcher in between.

They are forked from one server that has imported torch and its company, which spares each of them that.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest import mock

TIMEOUT_SECONDS = 600
IMPORTED = (
    "peft",
    "stir_train.models.lora",
    "stir_train.recipes.distill",
    "stir_train.recipes.evaluate",
)
"""What most ranks import; nothing of it starts threads."""


class Rank:
    """A process of a launch, with the methods of a `subprocess.Popen` that tests use."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    def wait(self, timeout: float) -> int:
        """Its exit status, negative for the signal that killed it.

        Raises:
            TimeoutError: If it does not end in time.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self._process.pid} did not end in {timeout} s")
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self) -> None:
        """Kill it, if it is alive."""
        self._process.kill()
        self._process.join()


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


@cache
def _context() -> ForkServerContext:
    """What forks ranks; its server is started once, with one thread for torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        forkserver.ensure_running()
    return context


def _run_program(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Be ``python ARGV`` in a process that was forked for it."""
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    if argv[0] == "-m":
        sys.argv = list(argv[1:])
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(argv)
        runpy.run_path(argv[0], run_name="__main__")


def start_ranks(size: int, argv: Sequence[str], log: Path) -> list[Rank]:
    """Start ``size`` ranks of ``python ARGV``; their output goes to ``log.RANK``."""
    port, context = free_port(), _context()
    ranks = []
    for rank in range(size):
        environment = rank_environment(rank, size, port)
        process = context.Process(
            target=_run_program, args=(argv, environment, Path(f"{log}.{rank}"))
        )
        process.start()
        ranks.append(Rank(process))
    return ranks


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
