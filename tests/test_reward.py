"""What directions raise: accuracy, or a function of the user's own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stir_train.artifacts.run_dir import RunDir
from stir_train.stores.reports import load_report
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.reports import DirectionsReport
from tests.support.smoke import run_smoke


def _with_rollouts(finished: Path, output: Path) -> RunDir:
    shutil.copytree(finished / "smoke" / "rollout", output / "smoke" / "rollout")
    return RunDir(output / "smoke")


def _directions(output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run_smoke(output, "tune.modes=[vector]", *more, verb="directions")


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of rewards beside the run."""
    file = tmp_path / "rewards.py"
    file.write_text(
        "def brief(item):\n    return -len(item.text)\n\n\n"
        "def nothing(item):\n    return None\n\n\n"
        "def broken(item):\n    return item.nonesuch\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield file
    sys.modules.pop("rewards", None)


def test_a_reward_of_ones_own_is_what_directions_raise(
    finished: Path, rewards: Path, tmp_path: Path
) -> None:
    run = _with_rollouts(finished, tmp_path)
    own = "directions.reward=rewards:brief"
    done = _directions(tmp_path, own)
    assert done.returncode == 0, done.stderr
    report = load_report(run.stage("directions"), DirectionsReport)
    lengths: dict[str, set[int]] = {}
    for item in RolloutStore(run.stage("rollout")).read():
        lengths.setdefault(item.rollout.prompt_id, set()).add(len(item.text))
    assert report.num_mixed == sum(len(found) > 1 for found in lengths.values())
    rewards.write_text(rewards.read_text() + "# edited\n")
    assert "import rewards:brief" in _directions(tmp_path, own).stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rewards:nothing", "returned None"),
        ("rewards:broken", "AttributeError"),
        ("rewards:nonesuch", "has no 'nonesuch'"),
        ("tokens", "neither accuracy nor an import path"),
    ],
)
def test_a_reward_that_is_none_is_named(
    finished: Path, rewards: Path, tmp_path: Path, name: str, said: str
) -> None:
    _with_rollouts(finished, tmp_path)
    done = _directions(tmp_path, f"directions.reward={name}")
    assert done.returncode != 0
    assert "directions.reward" in done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert rewards.exists()
