"""The table of faults names tests that exist."""

from __future__ import annotations

import ast
import re

from tests.support.documents import ROOT

PAGE = ROOT / "docs" / "reliability.md"
_ROW = re.compile(
    r"\| (?P<fault>[^|]+) \| (?P<happens>[^|]+) \| `(?P<file>tests/[\w/]+\.py)::(?P<test>test_\w+)` \|"
)


def test_every_row_of_the_table_of_faults_names_a_test_that_exists() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    rows = [line for line in lines if not line.startswith(("| fault |", "|---"))]
    assert len(rows) >= 50
    wrong = []
    for line in rows:
        row = _ROW.fullmatch(line)
        if row is None:
            wrong.append(f"no row of three cells: {line}")
        elif row["test"] not in _tests_of(row["file"]):
            wrong.append(f"no test {row['file']}::{row['test']}")
    assert not wrong, "\n".join(wrong)


def test_the_numbers_of_the_table_are_those_of_the_corpora() -> None:
    from tests.fuzz import corpus, test_data

    text = PAGE.read_text(encoding="utf-8")
    assert f"| {len(corpus.TEXTS)} written texts |" in text
    assert f"| {test_data.num_cases()} written files and rows |" in text


def _tests_of(file: str) -> set[str]:
    path = ROOT / file
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
