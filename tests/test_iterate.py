"""Generations that end early, and what their comparison is made from."""

from __future__ import annotations

import json
from pathlib import Path

from stir_train.artifacts.run_dir import RunDir
from stir_train.stores.results import load_run_results
from tests.support.smoke import run_smoke

ENDS_AT_DIRECTIONS = (
    "splits={num_harvest: 16, num_tune: 4, num_test: 4}",
    "rollout.temperature=1.0",
    "harvest.depths=[0.8]",
    # No p-value of 19 shuffles is below 1 / 20.
    "directions={num_permutations: 19, significance: 0.001}",
    "tune={modes: [vector], vectors: {every_token: [20]}}",
)


def test_a_generation_that_ends_without_a_student_ends_the_iteration(tmp_path: Path) -> None:
    done = run_smoke(tmp_path, *ENDS_AT_DIRECTIONS, verb="iterate")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "no effect: no direction beats" in said
    assert "generation 1: ended without a student" in said
    run = tmp_path / "smoke"
    assert not (run / "students").exists()
    assert load_run_results(run, "test").test_openings == 1
    assert len(json.loads((run / "test_openings.json").read_text())["choices"]) == 1
    sources = json.loads((run / "test" / "stage.json").read_text())["sources"]
    assert sources["stage test-0"] == RunDir(run).stage("test-0").fingerprint()
    for setting, said in (
        ("evaluate.num_bootstrap=600", "num_bootstrap: 500 then, 600 now"),
        ("utility.token_price=0.3", "utility.token_price: 0.5 then, 0.3 now"),
        ("task.answer_marker='Result:'", "task.answer_marker"),
        ("seed=3", "seed: 0 then, 3 now"),
    ):
        other = run_smoke(tmp_path, *ENDS_AT_DIRECTIONS, setting, verb="iterate")
        assert other.returncode == 1, setting
        assert said in " ".join(other.stderr.split())
