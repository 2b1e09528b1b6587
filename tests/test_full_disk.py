"""A write that finds no room is an error of the system, and leaves what was there."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stir_train.artifacts.run_dir import StageDir, StageInputs
from stir_train.artifacts.tensors import load_tensors, save_tensors
from stir_train.train.checkpoint import Checkpoint, CheckpointFile


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
