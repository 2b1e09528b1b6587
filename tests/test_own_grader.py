"""Graders of the user's own: a function or a class, in the pool, with errors in our words."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from stir_train.config.inputs import TaskConfig
from stir_train.config.load import parse_config
from stir_train.data.grading import Grader
from stir_train.errors import ConfigError, DataError, StirError
from stir_train.types.rollout import Gold, Grade
from tests.support.commands import stir_train

CODE = """
import os
from stir_train.types.rollout import Grade


def ends_alike(response, gold):
    return response.strip().endswith(gold.answer)


class Within:
    def __init__(self, task):
        self.marker = task.answer_marker

    def __call__(self, response, gold):
        found = response.partition(self.marker)[2].strip()
        if found == "die":
            os._exit(1)
        close = abs(float(found) - float(gold.answer)) < 0.1
        return Grade(close, found, "close" if close else "far", had_marker=True)


class Careless:
    def __init__(self):
        pass


def says_maybe(response, gold):
    return "maybe"


value = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_grader_code.py").write_text(CODE)
    yield tmp_path
    sys.modules.pop("own_grader_code", None)


def _grade(name: str, texts: list[str], golds: list[str], truncated: list[bool]) -> list[Grade]:
    with closing(Grader(TaskConfig(grader=f"own_grader_code:{name}"), num_workers=1)) as grader:
        return grader.grade(texts, [Gold(gold) for gold in golds], truncated)


def test_a_function_and_a_class_grade(own: Path) -> None:
    grades = _grade(
        "ends_alike", ["it is 5", "it is 6", "it is 5"], ["5"] * 3, [False, False, True]
    )
    assert [(g.correct, g.reason) for g in grades] == [
        (True, "equal"),
        (False, "different"),
        (False, "truncated"),
    ]
    texts = ["Answer: 5.05", "Answer: 6", "Answer: die", "Answer: 5"]
    grades = _grade("Within", texts, ["5"] * 4, [False] * 4)
    assert [g.reason for g in grades] == ["close", "far", "crashed", "close"]
    assert grades[0] == Grade(True, "5.05", "close", had_marker=True)


@pytest.mark.parametrize(
    ("name", "kind", "complaint"),
    [
        ("value", ConfigError, "cannot be called"),
        ("Careless", ConfigError, r"Careless\(task\) failed: TypeError"),
        ("absent", ConfigError, "has no 'absent'"),
        ("says_maybe", DataError, "must return a Grade or a bool, not 'maybe'"),
        (
            "Within",
            DataError,
            "Within failed: ValueError: .*gold answer '5', response ...'Answer: x'",
        ),
    ],
)
def test_a_grader_that_fails_is_said(
    own: Path, name: str, kind: type[StirError], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        _grade(name, ["Answer: x"], ["5"], [False])


def test_a_grader_is_a_known_name_or_an_import_path() -> None:
    with pytest.raises(ConfigError, match=r"grader is none of exact, numeric, .*'numbers'"):
        parse_config(TaskConfig, {"grader": "numbers"}, [], origin="x")


def test_the_command_grades_with_it(own: Path) -> None:
    file = own / "responses.jsonl"
    file.write_text(json.dumps({"response": "it is 5", "answer": "5"}) + "\n")
    done = stir_train("grade", str(file), "grader=own_grader_code:ends_alike")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["correct"] is True
