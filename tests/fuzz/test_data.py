"""Hostile data files, written and drawn: each is refused in our words, by file and row, at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stir_train.config.inputs import TaskConfig
from stir_train.data.problems import read_source
from stir_train.errors import StirError

GOLDS = (
    *(
        "002",
        "+1",
        "1.",
        ".5",
        "1_000",
        "0x10",
        "1e",
        "NaN",
        "-NaN",
        "Infinity",
        "-Infinity",
        "nan",
    ),
    *(
        "null",
        '""',
        '" "',
        '"\\t\\n"',
        '"\\u0000"',
        '"5\\u0000"',
        '"\\ud800"',
        '"\\udfff5"',
        '"\\q"',
    ),
    *("[]", "{}", "[5]", '["5"]', '["5", "6"]', '{"value": 5}', "[[5]]", "true", "false", "'5'"),
    *(
        '"5 or 6"',
        '"5, 6"',
        '"5;6"',
        '"5-6"',
        '"5 to 6"',
        '"between 5 and 6"',
        '"x"',
        '"5x"',
        '"x=y"',
    ),
    *(
        '"5/0"',
        '"--5"',
        '"5..5"',
        '"5.5.5"',
        '"1,5"',
        '"2024-01-31"',
        '"12:30"',
        '"not 5"',
        '"five"',
    ),
    *(
        '"<5"',
        '">= 5"',
        '"at least 5"',
        '"5 or more"',
        '"5!"',
        '"5^2"',
        '"5 + 5"',
        '"sqrt(2)"',
        '"5i"',
    ),
    *(
        '"NaN"',
        '"inf"',
        '"None"',
        '"null"',
        '"N/A"',
        '"?"',
        '"-"',
        '"..."',
        '"\\\\frac{1}{0}"',
        '"1e999"',
    ),
    *(
        '"(1, 2)"',
        '"[1, 2]"',
        '"{1, 2}"',
        '"5 apples and 6 pears"',
        '"5 = 6"',
        '"~~5~~"',
        '"twenty 5"',
    ),
    "9" * 2000,
    f"1e{'9' * 20}",
    f'"{"9" * 2000}"',
)
"""Gold answers of a number's task that are not one number, as they stand in a JSON line."""
LINES = (
    *(
        "",
        " ",
        "null",
        "3",
        '"x"',
        "[]",
        "[1]",
        "{",
        "}",
        "{}",
        "{]",
        "[}",
        "{question: 1}",
        "question",
    ),
    *(
        '{"question": "q"}',
        '{"answer": "5"}',
        '{"question": null, "answer": "5"}',
        "\x00",
        "\x1f\x8b",
    ),
    *(
        '{"question": "", "answer": "5"}',
        '{"question": 5, "answer": "5"}',
        '{"question": [], "answer": 5}',
    ),
    *(
        '{"question": {}, "answer": "5"}',
        '{"question": true, "answer": "5"}',
        '{"question": " ", "answer": 5}',
    ),
    *('{"question": "q\\u0000", "answer": "5"}', '{"question": "\\ud83d", "answer": "5"}'),
    *(
        '{"question": "q", "answer": "5"} x',
        '{"question": "q", "answer": "5"},',
        '// {"question": "q"}',
    ),
    '{"question": "q", "answer": "5", "answer": "6"}',
    '{"question": "q", "question": "r", "answer": "6"}',
    '{"question": "q", "answer": "5"}{"question": "r", "answer": "5"}',
    "[" * 100_000,
    '{"a":' * 100_000,
)
"""Lines of a JSON Lines file that hold no problem."""
FILES = (
    *(("a.csv", b"question,answer\n" + row) for row in (
        b"q\n", b"q,\n", b"q,5,6\n", b",5\n", b'"q,5\n', b'q,"5"6\n', b"q,5;6\n", b"q,\xff\n", b"q,5\x00\n",
        b"q,TRUE\n", b"q,2024-01-31\n", b"q,#REF!\n", b"q,=1+1\n", b"q,5\nq,6\n", b"q," + b"9" * 200_000,
    )),
    *(("a.csv", table) for table in (
        b"", b"\n", b"question,answer\n", b"question;answer\nq;5\n", b"question,answer,answer\nq,5,6\n",
        b"Question,Answer\nq,5\n", b" question , answer\nq,5\n", "question,answer\nq,5\n".encode("utf-16"),
    )),
    *(("a.json", text) for text in (
        b"", b" ", b"[", b"[]", b"[{}]", b"[1]", b"[[]]", b"null", b'[{"question": "q", "answer": "5"}',
        b'[{"question": "q", "answer": "5"}] []', b'{"data": [{"question": "q", "answer": "5"}]}',
        b"[" * 100_000, b'\xff\xfe["', b'[{"question": "q", "answer": "5"}, null]',
    )),
    *(("a.parquet", text) for text in (b"", b"PAR1", b"PAR1PAR1", b"PAR1" + bytes(64) + b"PAR1", b"x" * 99)),
    *((name, b"x") for name in ("a", "a.txt", "a.jsonl.gz", "a.zip", "a.tar", "a.xlsx", "a.json.bak", "a.zst")),
)  # fmt: skip
"""Whole files by name."""


def _read(file: Path, **task: Any) -> None:
    read_source(TaskConfig(name="mine", source=str(file), grader="numeric", **task))


def _cases() -> Iterator[tuple[str, bytes]]:
    for gold in GOLDS:
        yield "a.jsonl", f'{{"question": "q", "answer": {gold}}}\n'.encode()
    for line in LINES:
        yield "a.jsonl", f"{line}\n".encode()
    yield from FILES


def num_cases() -> int:
    """How many files the written corpus has."""
    return sum(1 for _ in _cases())


def test_the_written_corpus_is_refused(tmp_path: Path) -> None:
    cases = list(_cases())
    assert len(cases) >= 150
    wrong = []
    for name, content in cases:
        file = tmp_path / name
        file.write_bytes(content)
        try:
            _read(file)
        except StirError as error:
            if str(file) not in str(error):
                wrong.append(f"{name} {content[:80]!r}: {error} does not name the file")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not ours
            wrong.append(f"{name} {content[:80]!r}: {type(error).__name__}: {error}")
        else:
            wrong.append(f"{name} {content[:80]!r}: was taken")
        file.unlink()
    assert not wrong, "\n".join(wrong)


def test_all_bad_rows_are_listed_by_line_and_good_ones_do_not_hide_them(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [f'{{"question": "q{i}", "answer": "{i}"}}' for i in range(9)]
    rows[2], rows[7] = '{"question": "q2", "answer": "2 or 3"}', "{"
    file.write_text("\n".join(rows))
    with pytest.raises(StirError, match="2 of 9 rows are unusable") as refused:
        _read(file)
    assert f"{file}:3: " in str(refused.value)
    assert f"{file}:8: " in str(refused.value)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.slow
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={key: _VALUES for key in ("question", "answer", "kind", "choices")},
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(
    max_examples=500,
    derandomize=True,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_rows_are_problems_with_the_golds_as_written_or_an_error_of_ours(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    file = tmp_path / "any.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    try:
        problems = read_source(TaskConfig(name="mine", source=str(file), grader="exact"))
    except StirError:
        return
    assert len(problems) == len(rows)
    for problem, row in zip(problems, rows, strict=True):
        held = row["answer"]
        assert problem.answer == (held.strip() if isinstance(held, str) else json.dumps(held))
