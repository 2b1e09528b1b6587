"""Directories that several test files read: one process makes each, all workers get a copy."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(temporary: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A copy, which tests may add to, of what ``make`` writes into an empty directory.

    Args:
        temporary: Of this session.
        name: Of the directory; what has the same name is the same.
        make: Called by the first worker that asks; others wait for it.
    """
    base = temporary.getbasetemp()
    if (
        "PYTEST_XDIST_WORKER" in os.environ
    ):  # the directory above belongs to all workers of this session
        base = base.parent
    made, whole = base / f"made-{name}", base / f"made-{name}.whole"
    with (base / f"made-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            make(made)
            whole.touch()
    return Path(shutil.copytree(made, temporary.mktemp(name), dirs_exist_ok=True))
