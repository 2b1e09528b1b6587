"""A real Slurm cluster of two nodes on this machine, for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("local_slurm.sh")
DIRECTORY = Path("/tmp/stir-train-slurm")  # unix sockets need a short path


def cluster(verb: str, *arguments: str) -> None:
    """Call the script that runs the cluster."""
    done = subprocess.run(
        ["bash", str(SCRIPT), verb, str(DIRECTORY), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """The cluster is up, and this process's Slurm commands talk to it."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("a local Slurm cluster needs root and Debian")
    cluster("up", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(DIRECTORY / "etc" / "slurm.conf"))
        yield
    cluster("down")
