"""Python programs in processes that are forked from one server, which has imported torch and its company.

Each is a process of its own with its own environment, and spared the import.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from stir_train.export import verify

IMPORTED = (
    "peft",
    "stir_train.models.lora",
    "stir_train.recipes.distill",
    "stir_train.recipes.evaluate",
)
"""What most programs import; nothing of it starts threads."""


class Forked:
    """A running program, with the methods of a `subprocess.Popen` that tests use."""

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], output: Path, errors: Path
    ) -> None:
        """Start ``python ARGV``; what it prints goes to two files, which may be one."""
        self._process: ForkServerProcess = _context().Process(
            target=_run_program, args=(list(argv), dict(environment), output, errors)
        )
        self._process.start()

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


def forked_checks() -> AbstractContextManager[object]:
    """Inside, adapters are verified in forked processes; some tests leave verification as it is."""
    return mock.patch.object(verify, "subprocess", SimpleNamespace(run=_run))


def _run(command: Sequence[str], *, timeout: float, **_: bool) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` answers for ``[python, -I, SCRIPT, ...]`` with its output captured as text."""
    python, isolated, *argv = command
    assert (python, isolated) == (sys.executable, "-I"), command
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        program = Forked(argv, os.environ, output, errors)
        try:
            status = program.wait(timeout)
        finally:
            program.end()
        return subprocess.CompletedProcess(
            command, status, output.read_text(), errors.read_text(errors="replace")
        )


@cache
def _context() -> ForkServerContext:
    """What forks; its server is started once, with one thread for torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        forkserver.ensure_running()
    return context


def _run_program(
    argv: Sequence[str], environment: Mapping[str, str], output: Path, errors: Path
) -> None:
    """Be ``python ARGV`` in a process that was forked for it."""
    with output.open("ab") as to_output, errors.open("ab") as to_errors:
        os.dup2(to_output.fileno(), sys.stdout.fileno())
        os.dup2(to_errors.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    if argv[0] == "-m":
        sys.argv = list(argv[1:])
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(argv)
        runpy.run_path(argv[0], run_name="__main__")
