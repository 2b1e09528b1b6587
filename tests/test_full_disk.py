"""A write that finds no room is an error of the system, and leaves what was there."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from unittest import mock

import pytest
import torch

from stir_train.artifacts import atomic
from stir_train.artifacts.attempts import PROGRESS_FILE
from stir_train.artifacts.run_dir import StageDir, StageInputs
from stir_train.artifacts.tensors import load_tensors, save_tensors
from stir_train.train.checkpoint import Checkpoint, CheckpointFile
from tests.support.small_runs import run_small, small_run
from tests.support.smoke import STAGES, digests


@contextmanager
def _largest_file(num_bytes: int) -> Iterator[None]:
    """No process can write a longer file: writes fail as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_tensors_that_find_no_room_are_an_error_of_the_system_and_leave_nothing(
    tmp_path: Path,
) -> None:
    stage = StageDir(tmp_path / "rollout")
    stage.begin(StageInputs({}, {}))
    values = {"a": torch.zeros(64, 64)}
    with _largest_file(4096), pytest.raises(OSError, match="File too large"):
        save_tensors(stage, "a.safetensors", values, {})
    assert [path.name for path in stage.path.iterdir()] == ["stage.json"]
    save_tensors(stage, "a.safetensors", values, {})
    assert load_tensors(stage.path / "a.safetensors")[0]["a"].shape == (64, 64)


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "fit", 1, "fit")
    file.save(Checkpoint(1, {}, {"a": torch.zeros(4)}))
    with _largest_file(4096), pytest.raises(OSError, match="File too large"):
        file.save(Checkpoint(2, {}, {"a": torch.zeros(64, 64)}))
    held = file.load()
    assert held is not None
    assert held.step == 1


@contextmanager
def _no_room_from_write(number: int, code: int) -> Iterator[list[int]]:
    """The write of this number, through the one door that artifacts are written by, fails; yields the count.

    Of progress, which is written by the clock, none counts: how many there are differs from run to run.
    """
    sync, count = atomic._sync, [0]

    def write(path: Path) -> None:
        if not path.is_dir() and Path(PROGRESS_FILE).stem not in path.name:
            count[0] += 1
            if count[0] == number:
                raise OSError(code, os.strerror(code), str(path))
        sync(path)

    with mock.patch.object(atomic, "_sync", write):
        yield count


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "code"), list(zip(STAGES, cycle([errno.ENOSPC, errno.EROFS]))))
def test_a_disk_that_fills_up_or_becomes_read_only_in_any_stage_loses_nothing(
    finished: Path, tmp_path: Path, stage: str, code: int
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "runs"))
    expected = digests(output)
    shutil.rmtree(output / "smoke" / stage)
    with _no_room_from_write(1 << 30, code) as count:
        whole = run_small(output, verb=stage)
    assert whole.returncode == 0, whole.stderr
    assert digests(output) == expected
    rng = random.Random(f"{stage} {code}")
    for number in (rng.randrange(1, count[0]), count[0]):
        shutil.rmtree(output / "smoke" / stage)
        with _no_room_from_write(number, code):
            stopped = run_small(output, verb=stage)
        assert stopped.returncode == 1, (number, stopped.stderr)
        assert os.strerror(code) in stopped.stderr
        assert "Traceback" not in stopped.stderr
        if (output / "smoke" / stage / "complete").exists():
            assert digests(output) == expected, "a stage that says it is whole is whole"
        again = run_small(output, verb=stage)
        assert again.returncode == 0, again.stderr
        assert digests(output) == expected, number
