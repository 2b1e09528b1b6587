"""What a run reads beside its stages' own tables: damage is refused by name, and never counts as absence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from stir_train.artifacts.openings import NUM_OPENINGS_FILE, OPENINGS_FILE, record_opening
from stir_train.artifacts.run_dir import RunDir, StageDir, StageInputs
from stir_train.artifacts.tensors import save_tensors
from stir_train.baselines.registry import load_baseline
from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig
from stir_train.errors import ArtifactError
from stir_train.export.adapter import save_adapter
from stir_train.models.describe import describe_model
from stir_train.models.lora import make_whole_student
from stir_train.runtime.answerers import baseline_answerer, parameters_file
from stir_train.runtime.context import PROBLEMS_FILE, RunContext
from stir_train.runtime.students import merge_adapter
from stir_train.stores.adapters import ADAPTER_FILES, adapter_of

MODEL = ModelConfig(name="embedded/addition")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _begun(run: Path, name: str) -> StageDir:
    stage = RunDir(run).stage(name)
    assert stage.begin(StageInputs(config={}, sources={}))
    return stage


def _context(run: Path) -> RunContext:
    """As much of a context as readers of a run need."""
    run_dir = RunDir(run)
    resources = SimpleNamespace(described=describe_model(MODEL))
    config = SimpleNamespace(model=MODEL)
    made = SimpleNamespace(stage=run_dir.stage, resources=resources, config=config)
    return cast(RunContext, made)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the adapter of a student that learned something."""
    run = tmp_path_factory.mktemp("distilled")
    student = make_whole_student(MODEL, DistillConfig(rank=8), seed=0).model
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    stage = _begun(run, "distill")
    save_adapter(student, stage)
    stage.finish({})
    return run


def test_openings_of_the_test_split_are_counted_by_choice(tmp_path: Path) -> None:
    assert [record_opening(tmp_path, choice) for choice in ("a", "a", "b", "a")] == [1, 1, 2, 2]


def test_an_opening_that_was_killed_before_it_was_counted_counts_once(tmp_path: Path) -> None:
    record_opening(tmp_path, "a")
    (tmp_path / NUM_OPENINGS_FILE).unlink()
    assert record_opening(tmp_path, "a") == 1


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, _flip, lambda path: path.write_text("[]"), lambda path: path.write_text("")],
)
def test_a_damaged_record_of_openings_is_not_counted_from_the_start(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    record_opening(tmp_path, "a")
    damage(tmp_path / OPENINGS_FILE)
    with pytest.raises(
        ArtifactError, match=rf"{OPENINGS_FILE} is damaged or missing.*another run name"
    ):
        record_opening(tmp_path, "b")


@pytest.mark.parametrize("damage", [Path.unlink, _flip])
def test_the_leak_guard_does_without_no_list_of_problems(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    stage = _begun(tmp_path, "rollout")
    with stage.writing(PROBLEMS_FILE) as path:
        path.write_text('{"harvest": ["p1"]}')
    stage.finish({})
    _begun(tmp_path, "harvest").finish({})  # which opens no split
    context = SimpleNamespace(stage=RunDir(tmp_path).stage)
    names = ("rollout", "harvest", "steer")
    used = RunContext.problems_used(cast(RunContext, context), names)
    assert used == {"rollout (harvest)": {"p1"}}
    damage(stage.path / PROBLEMS_FILE)
    with pytest.raises(ArtifactError, match=f"{PROBLEMS_FILE} is (missing|damaged)"):
        RunContext.problems_used(cast(RunContext, context), names)


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_baselines_parameters_are_verified_before_it_answers(
    tmp_path: Path, is_finished: bool
) -> None:
    stage, method = _begun(tmp_path, "baselines"), load_baseline("nowait")
    name = parameters_file(method.name)
    save_tensors(stage, name, {"tokens": torch.arange(8)}, {})
    if is_finished:
        stage.finish({})
    answerer = baseline_answerer(_context(tmp_path), method, {})
    assert answerer.load_parameters()["tokens"].tolist() == list(range(8))
    _flip(stage.path / name)
    with pytest.raises(ArtifactError, match=r"parameters.safetensors is damaged.*(again|--redo)"):
        answerer.load_parameters()


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_damaged_adapter_is_never_loaded(distilled: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(distilled, run)
    adapter = adapter_of(RunDir(run).stage("distill"))
    _flip(adapter / name)
    for read in (
        lambda: adapter_of(RunDir(run).stage("distill")),
        lambda: merge_adapter(_context(run), run / "students" / "1"),
    ):
        with pytest.raises(ArtifactError, match=f"{name} is damaged"):
            read()
    assert not (run / "students").exists()


def test_merged_weights_are_taken_only_whole_and_of_the_same_base_and_adapter(
    distilled: Path, tmp_path: Path
) -> None:
    context, target = _context(distilled), tmp_path / "students" / "1"
    merge_adapter(context, target)
    made = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    merge_adapter(context, target)
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == made
    shutil.copytree(target, tmp_path / "whole")

    def refused(context: RunContext, said: str) -> None:
        with pytest.raises(ArtifactError, match=rf"{said}.*remove .*merges again"):
            merge_adapter(context, target)
        shutil.rmtree(target)
        shutil.copytree(tmp_path / "whole", target)

    _flip(target / "model.safetensors")
    refused(context, "model.safetensors damaged")
    (target / "config.json").unlink()
    refused(context, "config.json damaged or missing")
    (target / "merged-from.json").unlink()
    refused(context, "does not say what it was merged from")
    other = tmp_path / "other"
    shutil.copytree(distilled, other)
    stage = RunDir(other).stage("distill")
    with stage.writing(f"lora/{ADAPTER_FILES[0]}") as path:
        path.write_text(f"{(stage.path / 'lora' / ADAPTER_FILES[0]).read_text()} ")
    stage.finish({})
    refused(_context(other), "merged from another base or adapter")
