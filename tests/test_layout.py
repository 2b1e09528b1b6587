"""What keeps the code readable: no long module, no long function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES_OF_A_MODULE, MOST_LINES_OF_A_FUNCTION = 400, 60


def modules() -> Iterator[tuple[str, str]]:
    """Every module of the repository, by its path, with its text."""
    for room in ("stir_train", "tests", "benchmarks", "docs"):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def long_functions(text: str) -> Iterator[tuple[str, int]]:
    """Functions over the limit, each with its number of lines, decorators left out."""
    for found in ast.walk(ast.parse(text)):
        if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (found.end_lineno or found.lineno) - found.lineno + 1
            if num_lines > MOST_LINES_OF_A_FUNCTION:
                yield found.name, num_lines


def test_modules_are_short() -> None:
    lengths = {path: len(text.splitlines()) for path, text in modules()}
    assert len(lengths) > 300
    assert {p: n for p, n in lengths.items() if n > MOST_LINES_OF_A_MODULE} == {}


def test_functions_are_short() -> None:
    assert [(path, found) for path, text in modules() for found in long_functions(text)] == []


def test_a_long_function_is_found() -> None:
    body = "    x = 1\n" * MOST_LINES_OF_A_FUNCTION
    assert list(long_functions(f"class A:\n    pass\n\nasync def f():\n{body}")) == [("f", 61)]
    assert list(long_functions(f"def f():\n{body[10:]}")) == []
