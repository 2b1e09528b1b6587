"""What a run leaves on wandb, read from the file that an offline run writes."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from stir_train.evals.sample_table import marked_text, sample_rows
from stir_train.types.rollout import Grade, GradedRollout, Impulse, Rollout
from tests.support.smoke import run_smoke
from tests.support.wandb_records import read_records


@pytest.fixture(scope="module")
def run(finished: Path) -> Path:
    return finished / "smoke"


@pytest.fixture(scope="module")
def records(run: Path) -> list[Any]:
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    return list(read_records(file))


def _named(items: Any) -> dict[str, Any]:
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def test_a_command_that_finds_everything_done_opens_no_run(run: Path) -> None:
    (made,) = (run / "wandb").glob("offline-run-*")
    num_attempts = len(list((run / "logs").glob("attempt_*")))
    done = run_smoke(run.parent, "tracking={wandb: offline, tags: [mine]}")
    assert done.returncode == 0, done.stderr
    assert list((run / "wandb").glob("offline-run-*")) == [made]
    assert len(list((run / "logs").glob("attempt_*"))) == num_attempts + 1


def test_a_run_is_found_by_its_group_its_kind_and_its_tags(records: list[Any]) -> None:
    (begun,) = (record.run for record in records if record.run.run_id)
    assert begun.run_group == "addition embedded/addition"
    assert begun.job_type == "run"
    assert set(begun.tags) >= {"addition", "embedded/addition", "standard", "seed-0", "mine"}


def test_headline_figures_are_in_the_summary(run: Path, records: list[Any]) -> None:
    summary: dict[str, Any] = {}
    for record in records:
        summary |= _named(record.summary.update)
    results = json.loads((run / "evaluate" / "results.json").read_text())
    rows = {row["metrics"]["name"]: row["metrics"] for row in results["methods"]}
    for name in ("stir", "lora-student"):
        assert summary[f"headline/{name}/accuracy"] == rows[name]["accuracy"]
        assert summary[f"headline/{name}/delta_accuracy"] == rows[name]["delta_accuracy"]


def test_charts_are_measurements_over_steps_that_go_up(records: list[Any]) -> None:
    axes = {
        record.metric.name: record.metric.step_metric
        for record in records
        if record.metric.name and record.metric.step_metric
    }
    steps: dict[str, list[int]] = defaultdict(list)
    charted: set[str] = set()
    for record in records:
        row = _named(record.history.item)
        charted |= {name for name, value in row.items() if isinstance(value, int | float)}
        for name in row.keys() & axes.keys():
            steps[name].append(row[axes[name]])
    assert steps["rollout/correct_rate"] == [1, 2]
    assert steps["evaluate/greedy/correct_rate"] == steps["evaluate/stir/correct_rate"] == [1]
    for name, counted in steps.items():
        assert counted == sorted(set(counted)), name
    assert not [name for name in charted if name.endswith(("/rank", "/bytes", "/sha256"))]
    assert not [name for name in charted if name.startswith("evaluate/accuracy")]


def test_some_answers_are_shown_with_their_impulses(run: Path) -> None:
    (file,) = run.glob("wandb/offline-run-*/files/media/table/evaluate/samples_*.table.json")
    table = json.loads(file.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["method"] for row in rows[:3]] == ["greedy", "stir", "lora-student"]
    for row in rows:
        assert row["completion"].count(" block ") == row["impulses"]
    assert any(row["impulses"] for row in rows)


def test_adapters_are_artifacts(records: list[Any]) -> None:
    logged = [
        record.request.log_artifact.artifact
        if record.request.log_artifact.artifact.name
        else record.artifact
        for record in records
    ]
    kept = [artifact for artifact in logged if artifact.name.endswith("-adapter")]
    assert {found.name for found in kept} == {"smoke-student-adapter", "smoke-rejection-adapter"}
    for found in kept:
        assert {"adapter_model.safetensors", "adapter_config.json"} <= {
            entry.path for entry in found.manifest.contents
        }


def test_a_mark_stands_behind_the_token_at_which_it_was_decided() -> None:
    impulses = (Impulse(1, 3, 7, 2.0), Impulse(2, 4, -1, -0.5, place="segment"))
    rollout = Rollout("p", 0, (1,), (5, 6, 7, 8), (0.0,) * 4, (1, 2), "stop", impulses)
    answer = GradedRollout(rollout, "5678", Grade(True, "", "equal"), 1.0)

    def decode(ids: Any) -> str:
        return "".join(map(str, ids))

    assert marked_text(answer, decode) == "56[+2.0 entry 7 block 3]7[-0.5 block 4]8"
    (row,) = sample_rows({"stir": [answer]}, {"p": "?"}, decode)
    assert row["impulses"] == 2
