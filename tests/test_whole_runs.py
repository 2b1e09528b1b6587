"""Whole runs, slow ones: killed again and again; with every other method and another task."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from stir_train.config.steering import RetrievingSteering
from stir_train.tools.compare import read_results, result_rows
from tests.support.commands import stir_train
from tests.support.smoke import (
    PYTHON,
    STAGES,
    digests,
    run_smoke,
    smoke_arguments,
)


@pytest.mark.slow
def test_other_methods_and_other_tasks_join_the_comparison(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "smoke", tmp_path / "smoke")
    out_of_domain = "evaluate.out_of_domain={sums: {task: {name: addition}, num_problems: 16}}"
    methods = "baselines.methods=[nowait, thinkedit]"
    only = ("--only", "baselines,evaluate,report", "--redo")
    variants = "evaluate.variants={shut: {margin: 10}, first: {first_point_only: true}}"
    done = run_smoke(tmp_path, methods, out_of_domain, variants, "evaluate.num_samples=2", *only)
    assert done.returncode == 0, done.stderr
    assert "2 other methods tuned over 11 settings" in done.stderr
    assert "outside the harvest: 16 problems of sums" in done.stderr
    results = read_results(tmp_path / "smoke")
    rows = {row.name: row for row in results.methods}
    assert rows["nowait"].chosen_on == rows["thinkedit"].chosen_on == "tune"
    assert set(rows["thinkedit"].setting or {}) == {"against", "heads"}
    assert rows["variant-shut"].chosen_on == "tune, then changed"
    rates = {name: row.metrics.intervention_rate for name, row in rows.items()}
    assert rates["stir"] > rates["variant-shut"] == 0
    assert isinstance(rows["variant-first"].steering, RetrievingSteering)
    assert rows["variant-first"].steering.first_point_only is True
    (sums,) = results.out_of_domain
    deployable = ["greedy", "stir", "lora-student", "lora-rejection"]
    assert [row.name for row in results.sampled] == deployable
    yardsticks = [n for n in rows if n.startswith("control-")] + ["nowait", "thinkedit"]
    assert len(yardsticks) == 5
    assert {row.name for row in sums.methods} == {*deployable, *yardsticks}
    assert set(results.sampled[0].pass_at) == {1, 2}
    compared = [row[:2] for row in result_rows([tmp_path / "smoke"])]
    assert ("smoke on sums", "stir") in compared
    page = (tmp_path / "smoke/report/report.html").read_text()
    assert "majority@2" in page
    assert "Outside the harvest: sums" in page
    assert "thinkedit-" in page
    # The model's weights were edited and put back: greedy answers are what they were.
    before = read_results(finished / "smoke").find("greedy")
    assert before is not None
    after = rows["greedy"].metrics
    assert (after.accuracy, after.tokens_mean) == (
        before.metrics.accuracy,
        before.metrics.tokens_mean,
    )
    status = stir_train("status", str(tmp_path / "smoke"))
    assert status.stdout.count("done") == len(STAGES) + 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1))
def test_killed_at_a_random_point_and_rerun_it_ends_with_the_same_bytes(
    finished: Path, tmp_path: Path, seed: int
) -> None:
    expected = digests(finished)
    rng = random.Random(seed)
    for _ in range(3):
        target = rng.randrange(1, len(expected))
        process = subprocess.Popen(
            [*PYTHON, *smoke_arguments(tmp_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        # Watch files appear and kill at the chosen one: any point of any stage.
        while process.poll() is None and time.monotonic() < deadline:
            # (os.walk, since a folder may go while it is read.)
            if sum(len(dirs) + len(files) for _, dirs, files in os.walk(tmp_path)) >= target:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
    completed = run_smoke(tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert digests(tmp_path) == expected
