"""A disk that is full ends a run in a sentence, and the same command goes on."""

from __future__ import annotations

import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stir_train.artifacts.run_dir import StageDir, StageInputs
from stir_train.artifacts.tensors import load_tensors, save_tensors
from stir_train.train.checkpoint import Checkpoint, CheckpointFile
from tests.support.smoke import PYTHON, STAGES, digests, smoke_arguments


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


def _run(output: Path, *, blocks: int | None = None) -> subprocess.CompletedProcess[str]:
    """The smallest run in a process of its own, whose files may have so many blocks of 1024 bytes."""
    limit = "" if blocks is None else f"ulimit -f {blocks}; trap '' XFSZ; "
    command = f'{limit}exec "$@"'
    argv = ["bash", "-c", command, "bash", *PYTHON, *smoke_arguments(output)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_stage_ends_in_a_sentence_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    whole = _run(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    stopped_at = set()
    for blocks in (1, 4, 16, 24, 48, 96, 192, 384):
        full = _run(tmp_path / "full", blocks=blocks)
        if full.returncode:
            assert "Traceback" not in full.stderr, full.stderr
            assert "too large" in full.stderr, full.stderr
            made = tmp_path / "full" / "smoke"
            stopped_at.add(next(s for s in STAGES if not (made / s / "complete").is_file()))
    assert len(stopped_at) > 1, stopped_at
    rest = _run(tmp_path / "full")
    assert rest.returncode == 0, rest.stderr
    assert digests(tmp_path / "full") == digests(tmp_path / "whole")
