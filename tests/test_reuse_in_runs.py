"""Tuning and evaluation come to the same with greedy answers reused and with everything decoded."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from stir_train.artifacts.run_dir import RunDir
from stir_train.stores.reports import load_report
from stir_train.stores.results import load_results
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.results import TuneReport
from stir_train.types.rollout import GradedRollout
from tests.support.smoke import run_smoke

SETTINGS = (
    "splits={num_harvest: 16, num_tune: 16, num_test: 12}",
    "rollout.num_samples=3",
    "validation.enabled=false",
    "value.num_steps=50",
    "tune={modes: [value, static, preview], doubts: [0.0], candidates: [4], strengths: [3.0], "
    "num_halvings: 1}",
    "evaluate={num_bootstrap: 200, controls: false, out_of_domain: {sums: {task: {name: addition}, num_problems: 4}}}",
    "generation={max_new_tokens: 80, max_rows: 64, chunk_completions: 12}",
    "distill.enabled=false",
)
"""The shortest way to controllers that act; tuning goes over two chunks, and some answers are cut off."""
OFF = "reuse_greedy=false"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Two runs that are one up to the value heads, by whether greedy answers were reused."""
    reused, whole = tmp_path_factory.mktemp("reused"), tmp_path_factory.mktemp("whole")
    for verb in ("rollout", "harvest", "basis", "validate", "value"):
        _made(run_smoke(reused, *SETTINGS, verb=verb))
    shutil.copytree(reused / "smoke", whole / "smoke")
    for verb in ("tune", "evaluate"):
        _made(run_smoke(reused, *SETTINGS, verb=verb))
        _made(run_smoke(whole, *SETTINGS, OFF, verb=verb))
    return {True: reused / "smoke", False: whole / "smoke"}


def _made(done: object) -> None:
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]


@pytest.mark.parametrize("stage", ["tune", "evaluate"])
def test_items_decisions_and_counts_are_the_same_with_and_without(
    runs: dict[bool, Path], stage: str
) -> None:
    on, off = (RolloutStore(RunDir(runs[reuse]).stage(stage)) for reuse in (True, False))
    assert on.sets() == off.sets()
    for name in on.sets():
        assert list(map(_item, on.read(name))) == list(map(_item, off.read(name))), name
        if name.rsplit("/")[-1] != "greedy":
            some, every = on.decisions(name), off.decisions(name)
            assert [(d.prompt_id, d.point, d.chosen) for d in some] == [
                (d.prompt_id, d.point, d.chosen) for d in every
            ]
        assert sum(off.num_reused(name)) == 0


def _item(graded: GradedRollout) -> tuple[object, ...]:
    rollout = graded.rollout
    impulses = [(i.token_index, i.block, i.entry, i.place) for i in rollout.impulses]
    counts = (rollout.preview_tokens, rollout.forward_passes, rollout.control_points)
    return rollout.prompt_id, rollout.token_ids, impulses, counts, graded.grade, graded.reward


def test_the_figures_are_the_same_and_what_was_spared_is_told(runs: dict[bool, Path]) -> None:
    reports = {reuse: load_report(RunDir(runs[reuse]).stage("tune"), TuneReport) for reuse in runs}
    trials = {
        reuse: [dataclasses.replace(t, reused_tokens_mean=0.0) for t in report.trials]
        for reuse, report in reports.items()
    }
    assert trials[True] == trials[False]
    assert reports[True].chosen == reports[False].chosen
    results = {reuse: load_results(RunDir(runs[reuse]).stage("evaluate")) for reuse in runs}
    rows = {
        reuse: [dataclasses.replace(row, reused_tokens_mean=0.0) for row in found.methods]
        for reuse, found in results.items()
    }
    assert rows[True] == rows[False]
    assert 0 < reports[True].share_reused < 1
    assert 0 < results[True].share_reused < 1
    assert reports[False].share_reused == results[False].share_reused == 0
    manifest = json.loads((runs[True] / "tune" / "manifest.json").read_text())
    assert manifest["summary"]["share_reused"] == reports[True].share_reused


def test_a_chunk_whose_record_of_what_it_reused_is_damaged_is_made_again_with_the_same_bytes(
    runs: dict[bool, Path], tmp_path: Path
) -> None:
    shutil.copytree(runs[True], tmp_path / "smoke")
    stage = tmp_path / "smoke" / "tune"
    manifest = json.loads((stage / "manifest.json").read_text())["files"]
    (stage / "complete").unlink()
    (stage / "manifest.json").unlink()
    tables = sorted(stage.glob("[!.]*/part-0/reused-00000.parquet"))
    tables[
        0
    ].unlink()  # a table of what was reused, the checksum of another, and what both were taken from
    (stage / ".checksums" / tables[1].relative_to(stage)).unlink()
    next(stage.glob("greedy/states-00001.safetensors")).unlink()
    again = run_smoke(tmp_path, *SETTINGS, verb="tune")
    assert again.returncode == 0, again.stderr
    assert json.loads((stage / "manifest.json").read_text())["files"] == manifest
