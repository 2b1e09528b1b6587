"""The command line, run in this process: it spares every test the import of torch and its company."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from unittest import mock

import torch
import typer.main

from stir_train.cli import main
from tests.support.forked import forked_checks

command_of = cache(typer.main.get_command)
"""Typer makes all commands anew at every call; once will do."""


def stir_train(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What a process of its own would have answered."""
    argv = ["stir-train", *arguments]
    out, err = io.StringIO(), io.StringIO()
    status: int | str | None = None
    num_threads = torch.get_num_threads()
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(typer.main, "get_command", command_of),
        forked_checks(),
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            main()
        except SystemExit as left:
            status = left.code
        finally:
            torch.set_num_threads(num_threads)  # a run sets its own
    assert status is None or isinstance(status, int), status
    return subprocess.CompletedProcess(argv, status or 0, out.getvalue(), err.getvalue())
