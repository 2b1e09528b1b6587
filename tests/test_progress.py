"""What is said while a run works: progress by tokens, who is at work, and how long answers are."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from stir_train.artifacts.attempts import (
    RECENT_SECONDS,
    ProcessRecord,
    ProgressRecord,
    running_processes,
    save_process,
    save_progress,
)
from stir_train.artifacts.run_dir import RunDir
from stir_train.evals.lengths import measure_lengths
from stir_train.launch.status import run_status
from stir_train.monitoring import console as module
from stir_train.monitoring.console import TOKENS_BETWEEN_LOOKS, make_console, progress


class Clock:
    """Stands in for the clock: a second a token."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_a_stage_of_one_long_chunk_is_seen_to_move_by_its_tokens(clock: Clock) -> None:
    out = io.StringIO()
    with progress(make_console(out), "rollout", 8, "rollouts") as meter:
        for _ in range(TOKENS_BETWEEN_LOOKS):
            clock.now += 0.05
            meter.sampled()
    assert out.getvalue().startswith(f"rollout: 0/8 rollouts, {TOKENS_BETWEEN_LOOKS} tokens (20/s)")


def test_the_time_left_is_by_tokens_of_what_is_done(clock: Clock) -> None:
    with progress(make_console(io.StringIO()), "rollout", 4, "rollouts") as meter:
        meter(2, num_tokens=0)  # made before: no time of this process
        clock.now += 10
        meter(1, num_tokens=100)
        assert meter.seconds_left == pytest.approx(10)
        for _ in range(50):
            meter.sampled()
        clock.now += 5
        assert meter.seconds_left == pytest.approx(5)


def test_others_at_work_are_taken_to_be_as_fast_until_they_are_heard_of(clock: Clock) -> None:
    out = make_console(io.StringIO())
    with progress(out, "rollout", 4, "rollouts", num_workers=2) as meter:
        for _ in range(100):
            meter.sampled()
        clock.now += 10
        meter(1, num_tokens=100)
        assert meter.seconds_left == pytest.approx(15), "three of 100 tokens, 20 a second"
        meter(1, num_tokens=100)
        assert meter.seconds_left == pytest.approx(10), "the other's; now all are known"


def test_where_more_was_sampled_than_is_known_to_be_left_no_time_is_named(clock: Clock) -> None:
    with progress(make_console(io.StringIO()), "rollout", 2, "rollouts", num_workers=2) as meter:
        clock.now += 10
        meter(1, num_tokens=100)
        for _ in range(60):  # the other worker is done, and 40 tokens are left
            meter.sampled()
        assert meter.seconds_left is None


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_terminal_shows_every_figure_at_any_width(clock: Clock, width: int) -> None:
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=width, markup=False)
    with progress(terminal, "rollouts", 20_480, "rollouts") as meter:
        clock.now += 100
        meter(1024, "correct 59%", num_tokens=1_200_000)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.getvalue())
    assert "…" not in shown
    words = shown.split()
    for figure in ("1024/20480", "1,200,000", "(12,000/s),", "32", "left,", "59%"):
        assert figure in words, figure


def test_lines_become_seldom_and_the_end_is_said_once(clock: Clock) -> None:
    out = io.StringIO()
    with progress(make_console(out), "fit", 7200, "steps") as meter:
        for _ in range(7200):
            clock.now += 1
            meter()
        meter(0)
    lines = out.getvalue().splitlines()
    assert 100 < len(lines) < 300
    assert sum(line.startswith("fit: 7200/7200") for line in lines) == 1


def _begun(attempt: Path, *, pid: int, host: str = "here", ended_at: float | None = None) -> None:
    save_process(attempt, ProcessRecord(host, pid, 1000.0, ended_at))


def test_who_is_at_work_is_asked_of_this_host_and_told_by_others(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as dead:
        pass
    run = RunDir(tmp_path)
    ended, killed, alive, remote = (run.new_attempt() for _ in range(4))
    _begun(ended, pid=os.getpid(), ended_at=1001.0)
    _begun(killed, pid=dead.pid)
    _begun(alive, pid=os.getpid())
    _begun(remote, pid=1, host="there")
    save_progress(remote, ProgressRecord("tune", 3, 9, "problems", "2.0/s", 5000.0))
    found = running_processes(tmp_path, host="here", now=5001.0)
    assert [one.process.host for one in found] == ["here", "there"]
    assert str(found[1].progress) == "tune: 3/9 problems, 2.0/s"
    late = running_processes(tmp_path, host="here", now=5001.0 + RECENT_SECONDS)
    assert [one.process.host for one in late] == ["here"]


def test_status_says_running_where_a_process_is_and_stopped_where_none_is(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    (run.path / "config.yaml").write_text("name: run\n")
    run.stage("rollout").path.mkdir()
    attempt = run.new_attempt()
    assert run_status(run.path).state == "stopped"
    with mock.patch("socket.gethostname", return_value="here"):
        _begun(attempt, pid=os.getpid())
        save_progress(attempt, ProgressRecord("rollout", 1, 4, "rollouts", "", 1001.0))
        found = run_status(run.path)
    assert found.state == "running"
    assert found.stages[0].state == "running"
    (line,) = found.running
    assert f"on here (pid {os.getpid()}): rollout: 1/4 rollouts" in line
    assert "same command" not in found.advice


def test_a_budget_that_cuts_off_much_is_said_with_one_that_would_not() -> None:
    few = measure_lengths([10] * 97 + [64] * 3, [False] * 97 + [True] * 3, budget=64)
    assert few.advice is None
    tokens = [100] * 10 + [200] * 55 + [512] * 35
    much = measure_lengths(tokens, [False] * 65 + [True] * 35, budget=512)
    assert (much.median, much.ninth_decile, much.longest) == (200, 512, 512)
    proposed = much.proposed_budget
    assert proposed is not None
    assert 512 < proposed <= 4 * 512
    assert proposed % 64 == 0
    advice = much.advice
    assert advice is not None
    assert "35.0% of 100" in advice
    assert str(proposed) in advice


def test_a_proposal_grows_with_what_was_cut_off() -> None:
    proposals = [
        measure_lengths(
            [100] * (100 - cut) + [256] * cut, [False] * (100 - cut) + [True] * cut, budget=256
        ).proposed_budget
        for cut in (5, 20, 40, 60, 100)
    ]
    assert all(one is not None for one in proposals)
    assert proposals == sorted(proposals)  # type: ignore[type-var]
