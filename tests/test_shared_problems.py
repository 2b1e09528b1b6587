"""Runs that were tested on one another's problems say so where they are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stir_train.artifacts.run_dir import RunDir, StageInputs
from stir_train.errors import ArtifactError
from stir_train.tools.shared_problems import describe_shared


def made_run(run: Path, **used: dict[str, list[str]]) -> Path:
    """A run whose stages, by name, read these problems."""
    for name, splits in used.items():
        stage = RunDir(run).stage(name)
        stage.begin(StageInputs(config={}, sources={}))
        with stage.writing("problems.json") as path:
            path.write_text(json.dumps(splits), encoding="utf-8")
        stage.finish({})
    return run


def test_runs_on_the_same_problems_or_on_quite_different_ones_need_no_word(tmp_path: Path) -> None:
    first = made_run(tmp_path / "first", rollout={"harvest": ["a"]}, evaluate={"test": ["b", "c"]})
    same = made_run(tmp_path / "same", rollout={"harvest": ["a"]}, evaluate={"test": ["b", "c"]})
    apart = made_run(tmp_path / "apart", rollout={"harvest": ["d"]}, evaluate={"test": ["e"]})
    assert not describe_shared([first, same])
    assert not describe_shared([first, apart])
    assert not describe_shared([first, same, apart]), "two of one family, and another family"
    assert not describe_shared([first])


def test_some_of_the_same_test_problems_are_counted(tmp_path: Path) -> None:
    first = made_run(tmp_path / "first", evaluate={"test": ["a", "b", "c"]})
    second = made_run(tmp_path / "second", evaluate={"test": ["b", "c"]})
    said = describe_shared([first, second])
    assert "These 2 runs answered 5 test problems, 3 of them different ones" in said
    assert "harvested" not in said


def test_problems_that_another_run_learned_from_are_counted(tmp_path: Path) -> None:
    first = made_run(tmp_path / "first", tune={"tune": ["a"]}, evaluate={"test": ["b", "c"]})
    second = made_run(tmp_path / "second", rollout={"harvest": ["b"]}, evaluate={"test": ["d"]})
    assert describe_shared([first, second]).endswith(
        "another of these runs harvested or tuned on: 1."
    )
    # What a run itself learned from its evaluation refuses to test on; it is no matter of comparing.
    both = made_run(tmp_path / "both", rollout={"harvest": ["x"]}, evaluate={"test": ["x"]})
    assert not describe_shared([both])


def test_a_damaged_list_is_not_taken_for_none(tmp_path: Path) -> None:
    first = made_run(tmp_path / "first", evaluate={"test": ["a"]})
    (first / "evaluate" / "problems.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match="is damaged"):
        describe_shared([first])
