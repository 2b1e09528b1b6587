"""Notebooks kept as Python files with ``# %%`` cells: run them, and write what came out as Markdown or ``.ipynb``.

The files run as they are, in any editor that knows such cells, and are checked like the rest of the code.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARK = re.compile(r"(?m)^# %%(?P<kind>.*)\n")
IPYNB_VERSION = (4, 5)


@dataclass(frozen=True)
class Cell:
    """A piece of a notebook.

    Attributes:
        text: Markdown, or Python.
        is_code: Which of them.
        output: What running it printed, on either stream, and the value of its last expression.
    """

    text: str
    is_code: bool
    output: str = ""


def read_cells(text: str) -> list[Cell]:
    """The cells of a file; Markdown stands in comments."""
    before, *parts = _MARK.split(text)
    assert not before.strip(), "a notebook begins with a cell"
    cells = []
    for kind, body in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in kind:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            cells.append(Cell("\n".join(lines), is_code=False))
        else:
            cells.append(Cell(body.strip(), is_code=True))
    return cells


def run_cells(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """Run the code in one namespace, in a folder; an error ends it."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with _inside(folder):
        return [
            Cell(cell.text, True, _run(cell.text, namespace)) if cell.is_code else cell
            for cell in cells
        ]


def as_markdown(cells: Sequence[Cell], download: str) -> str:
    """A page of the site.

    Args:
        cells: That were run.
        download: Name of the notebook's file beside it.
    """
    parts = []
    for number, cell in enumerate(cells):
        if not cell.is_code:
            parts.append(cell.text)
            if number == 0:
                parts.append(f"[Download as a notebook]({download})")
            continue
        parts.append(f"```python\n{cell.text}\n```")
        if cell.output:
            parts.append(f"```text\n{cell.output}\n```")
    return "\n\n".join(parts) + "\n"


def as_ipynb(cells: Sequence[Cell]) -> str:
    """A Jupyter notebook, with its outputs."""
    major, minor = IPYNB_VERSION
    return json.dumps(
        {
            "cells": [_ipynb_cell(number, cell) for number, cell in enumerate(cells)],
            "metadata": {"kernelspec": {"display_name": "Python 3", "name": "python3"}},
            "nbformat": major,
            "nbformat_minor": minor,
        },
        indent=1,
    )


def _ipynb_cell(number: int, cell: Cell) -> dict[str, Any]:
    made: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}, "source": cell.text}
    if not cell.is_code:
        return {"cell_type": "markdown", **made}
    told = {"output_type": "stream", "name": "stdout", "text": cell.output}
    outputs = [told] if cell.output else []
    return {"cell_type": "code", **made, "execution_count": None, "outputs": outputs}


def _run(code: str, namespace: dict[str, Any]) -> str:
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(tree, "<cell>", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
            if value is not None:
                print(repr(value))
    return out.getvalue().rstrip()


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
