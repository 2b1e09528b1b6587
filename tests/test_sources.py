"""Sources as they are written: golds are text, and what cannot be used is refused by row."""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stir_train.config.inputs import TaskConfig
from stir_train.data.problems import read_source
from stir_train.errors import DataError, StirError


def _read(file: Path, **task: Any) -> list[str]:
    return [p.answer for p in read_source(TaskConfig(name="mine", source=str(file), **task))]


def test_csv_and_json_golds_are_the_text_of_the_file(tmp_path: Path) -> None:
    golds = ["002", "7.5", "2", "9007199254740993", "2024-01-31", "1e5", "0.1"]
    table = tmp_path / "a.csv"
    table.write_text("question,answer\n" + "".join(f"q{i},{g}\n" for i, g in enumerate(golds)))
    assert _read(table) == golds
    for name, frame in (("a.json", "[{}]"), ("a.jsonl", "{}")):
        between = ", " if name == "a.json" else "\n"
        written = ["7.50", "2", "9007199254740993", '"2024-01-31"', "1e5", '"002"', "1" * 5000]
        rows = between.join(f'{{"question": "q{i}", "answer": {g}}}' for i, g in enumerate(written))
        (tmp_path / name).write_text(frame.replace("{}", rows))
        assert _read(tmp_path / name) == [g.strip('"') for g in written]


def test_parquet_golds_are_their_exact_values(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    single = pa.array([0.1, 2.5], pa.float32())
    pq.write_table(pa.table({"question": ["a", "b"], "answer": single}), file)
    assert _read(file) == ["0.1", "2.5"]
    whole = pa.array([9007199254740993, 2], pa.int64())
    pq.write_table(pa.table({"question": ["a", "b"], "answer": whole}), file)
    assert _read(file) == ["9007199254740993", "2"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"question": "q", "answer": ["1", "2"]}', "the gold answer is a list, not text"),
        ('{"question": "q", "answer": {"a": 1}}', "the gold answer is a dict, not text"),
        ('{"question": "q", "answer": true}', "the gold answer is true, not text"),
        ('{"question": "q", "answer": null}', "answer is empty"),
        ('{"question": "q", "answer": NaN}', "NaN is no number in JSON"),
        ('{"question": "q", "answer": -Infinity}', "-Infinity is no number in JSON"),
        ('{"question": "q", "answer": "\\ud800"}', "gold answer holds half a character"),
        ('{"question": "\\udc00", "answer": "1"}', "question holds half a character"),
        ('{"question": 5, "answer": "1"}', "question is empty or not text"),
        ('{"question": "q", "answer": "1", "answer": "2"}', "'answer' stands twice"),
        ('{"question": "q", "answer": "1"', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("\\xff", "not JSON"),
        ("7", "not a JSON object"),
    ],
)
def test_rows_that_are_no_problems_are_refused_by_line(
    tmp_path: Path, row: str, complaint: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "fine", "answer": "1"}\n' + row + "\n")
    with pytest.raises(DataError, match=complaint) as caught:
        _read(file)
    assert f"{file}:2: " in str(caught.value)


@pytest.mark.parametrize(
    "value", [b"1", datetime.date(2024, 1, 31), math.nan, math.inf, [1, 2], {"a": 1}, True]
)
def test_typed_golds_without_one_way_of_writing_are_refused_by_row(
    tmp_path: Path, value: object
) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"question": "q", "answer": value}]), file)
    with pytest.raises(DataError, match=r"a\.parquet row 1: the gold answer is"):
        _read(file)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", b"x", r"ends in \.txt; known are"),
        ("a", b"x", "ends in no suffix"),
        ("a.jsonl.gz", b"\x1f\x8b", "is compressed; unpack it"),
        ("a.json", b"", "is empty"),
        ("a.json", b'[{"question": "q"', "not JSON"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b"question,answer\nq\n", "a.csv:2: 1 cells for 2 columns"),
        ("a.csv", b"question,answer,answer\nq,1,2\n", "names a column twice"),
        ("a.csv", b'question,answer\n"q,1\n', "not CSV"),
        ("a.csv", b"question,answer\n\xff,1\n", "is not UTF-8"),
        ("a.parquet", b"PAR1 no more", "is no Parquet file"),
        ("a.parquet", b"", "is no Parquet file"),
    ],
)
def test_files_that_cannot_be_read_are_an_error_of_ours(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        _read(tmp_path / name)


def test_a_device_is_no_file() -> None:
    with pytest.raises(DataError, match="ends in no suffix"):
        _read(Path("/dev/zero"))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_that_stands_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        file.write_text("question,answer,answer\nq,5,6\n")
    else:
        columns = [pa.array(["q"]), pa.array(["5"]), pa.array(["6"])]
        pq.write_table(pa.table(columns, names=["question", "answer", "answer"]), file)
    with pytest.raises(DataError, match="names a column twice"):
        _read(file)


@given(st.binary(max_size=200), st.sampled_from(["jsonl", "json", "csv", "parquet"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_problems_or_an_error_of_ours(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    file = tmp_path / f"any.{suffix}"
    file.write_bytes(content)
    with pytest.raises(StirError):
        _read(file)


def test_gold_mathematics_that_cannot_be_read_is_refused_by_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    golds = ["\\frac{1}{2}", "\\frac{1}{", "\\text{even}", "[0,1)", "???", "x+1", "7"]
    file.write_text(
        "".join(json.dumps({"question": f"q{i}", "answer": g}) + "\n" for i, g in enumerate(golds))
    )
    with pytest.raises(DataError, match="2 of 7 rows") as caught:
        _read(file, grader="math")
    assert [f"{file}:{n}: " in str(caught.value) for n in range(1, 8)] == [
        gold in ("\\frac{1}{", "???") for gold in golds
    ]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes the module ``own_code`` into the current directory; forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return lambda code: (tmp_path / "own_code.py").write_text(code) and None


def test_problems_may_come_from_a_function_of_the_users_own(own: Callable[[str], None]) -> None:
    own(
        "from stir_train.data.problems import SourceProblem\n"
        "def problems(task):\n"
        "    yield SourceProblem('1+1?', '2', content='1+1?')\n"
        "    yield {'question': '2+2?', 'answer': 4}\n"
    )
    for task in (
        TaskConfig(name="sums", source="own_code:problems", grader="numeric"),
        TaskConfig(name="own_code:problems", grader="numeric"),
    ):
        assert [(p.question, p.answer) for p in read_source(task)] == [("1+1?", "2"), ("2+2?", "4")]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("problems = 3", "is no function but int"),
        ("def problems(task): return 3", "own_code:problems failed: TypeError"),
        ("def problems(task): raise KeyError('k')", "own_code:problems failed: KeyError: 'k'"),
        ("def problems(task): return ['x']", "problem 1: neither a SourceProblem nor a mapping"),
        ("def problems(task): return [{'question': 'q', 'answer': ''}]", "problem 1: .*empty"),
        ("def problems(task): return []", "holds no rows"),
    ],
)
def test_a_loader_that_does_not_deliver_is_said(
    own: Callable[[str], None], code: str, complaint: str
) -> None:
    own(code)
    with pytest.raises(DataError, match=complaint):
        read_source(TaskConfig(name="sums", source="own_code:problems"))
