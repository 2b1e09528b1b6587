"""The wheel holds whatever the package reads, and works where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.smoke import ROOT, SMOKE

pytestmark = pytest.mark.slow

SITE = ROOT / "slurm" / "sites" / "gpu1.yaml"
ELSEWHERE = {"slurm": "stir_train/launch/slurm_files"}
"""Folders of the checkout that are inside the package once it is installed."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed package and nothing else of this checkout."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(wheel)], check=True)
    return folder


def _files(folder: Path) -> set[str]:
    """Paths in a folder, without what Python compiles."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    expected = {f"stir_train/{name}" for name in _files(ROOT / "stir_train")}
    for folder, inside in ELSEWHERE.items():
        expected |= {f"{inside}/{name}" for name in _files(ROOT / folder)}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert sorted(expected - held) == []
    assert sorted(held - expected) == []


def test_the_installed_package_runs_where_there_is_no_checkout(
    installed: Path, tmp_path: Path
) -> None:
    def run(*command: str) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    program = str(installed / "bin" / "stir-train")
    for path in (SMOKE, SITE):
        shutil.copy(path, tmp_path)
    place = run(sys.executable, "-c", "import stir_train; print(stir_train.__file__)")
    assert Path(place.strip()).is_relative_to(installed)
    assert run(program, "--version").startswith("stir-train ")
    # The templates of Slurm jobs.
    run(program, "run", SMOKE.name, "--dry-run", "--site", SITE.name, "--scripts-to", "jobs")
    assert list((tmp_path / "jobs").glob("*.sbatch"))
    # A model, the templates of the report, and the script that checks an adapter.
    run(program, "run", SMOKE.name)
    assert (tmp_path / "runs" / "smoke" / "report" / "report.html").is_file()
