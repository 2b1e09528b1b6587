"""What works on this machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stir_train.distributed.launch import usable_cores
from stir_train.errors import StageError
from stir_train.generation.vllm.versions import installed_version

MIN_FREE_GIB = 5
PACKAGES = ("torch", "transformers", "deepspeed", "peft", "accelerate", "datasets", "wandb")


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table; only a required one that fails makes the exit code 1."""

    name: str
    works: bool
    detail: str
    required: bool = False


def run_doctor(console: Console) -> bool:
    """Print the table; return whether everything required works."""
    checks = [_python(), *map(_package, PACKAGES), _devices(), _deepspeed_ops(), _slurm(), _wandb()]
    checks += [_vllm(), _disk()]
    table = Table(title="stir-train doctor")
    for column in ("what", "works", "detail"):
        table.add_column(column)
    for check in checks:
        color = "green" if check.works else "red" if check.required else "yellow"
        mark = Text("yes" if check.works else "no", style=color)
        table.add_row(check.name, mark, check.detail)
    console.print(table)
    return all(check.works for check in checks if check.required)


def _python() -> Check:
    version = sys.version_info
    return Check("python", version >= (3, 11), sys.version.split()[0], required=True)


def _package(name: str) -> Check:
    try:
        return Check(name, works=True, detail=importlib.metadata.version(name), required=True)
    except importlib.metadata.PackageNotFoundError:
        return Check(
            name, works=False, detail="not installed: in the clone, pip install .", required=True
        )


def _vllm() -> Check:
    try:
        return Check("vllm", works=True, detail=installed_version())
    except StageError as error:
        return Check("vllm", works=False, detail=str(error))


def _devices() -> Check:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("gpu", works=True, detail=", ".join(names))
    return Check("gpu", works=False, detail=f"none; {usable_cores()} CPU cores")


def _deepspeed_ops() -> Check:
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if missing:
        return Check(
            "deepspeed ops",
            works=False,
            detail=f"{', '.join(missing)} not on PATH; ops that must be compiled are unavailable",
        )
    return Check(
        "deepspeed ops", works=True, detail="g++ and ninja found: ops compile on first use"
    )


def _slurm() -> Check:
    return _command("slurm", ["sbatch", "--version"], "no sbatch on PATH: runs are local only")


def _wandb() -> Check:
    netrc = Path.home() / ".netrc"
    logged_in = netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")
    detail = "logged in" if logged_in else "not logged in: tracking.wandb=offline works"
    return Check("wandb login", works=logged_in, detail=detail)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Check("disk", free >= MIN_FREE_GIB, f"{free:.0f} GiB free here", required=True)


def _command(name: str, argv: list[str], otherwise: str) -> Check:
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run
    if shutil.which(argv[0]) is None:
        return Check(name, works=False, detail=otherwise)
    completed = run(argv, capture_output=True, text=True, check=False)
    return Check(name, completed.returncode == 0, completed.stdout.strip() or otherwise)
