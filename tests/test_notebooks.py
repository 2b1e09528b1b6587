"""The notebooks of the documentation run from beginning to end, in the order in which they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from docs.executed import Cell, as_ipynb, as_markdown, read_cells, run_cells

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("bring-your-own-model", "one-problem")


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Cell]]:
    folder, made = tmp_path_factory.mktemp("notebooks"), {}
    num_threads = torch.get_num_threads()
    for name in NOTEBOOKS:
        text = (ROOT / "docs" / "notebooks" / f"{name}.py").read_text()
        made[name] = run_cells(read_cells(text), folder)
    torch.set_num_threads(num_threads)
    return made


def test_every_notebook_is_run_and_is_in_the_site() -> None:
    assert {path.stem for path in (ROOT / "docs" / "notebooks").glob("*.py")} == set(NOTEBOOKS)
    text = (ROOT / "mkdocs.yml").read_text()
    for name in NOTEBOOKS:
        assert f"notebooks/{name}.md" in text
    assert yaml.safe_load(text)["hooks"] == ["docs/generated.py"]


def test_a_model_and_problems_of_ones_own_are_run_and_steered(
    executed: dict[str, list[Cell]],
) -> None:
    outputs = [cell.output for cell in executed["bring-your-own-model"]]
    assert any("evaluate: 24 test problems" in output for output in outputs)
    assert "impulses at" in outputs[-1]


def test_the_decisions_on_one_problem_are_those_of_the_run(executed: dict[str, list[Cell]]) -> None:
    outputs = [cell.output for cell in executed["one-problem"]]
    assert outputs[-1] == "True"
    assert any(output.startswith("point ") and "null" in output for output in outputs)


def test_pages_and_notebooks_hold_code_and_output() -> None:
    text = '# %% [markdown]\n# # Title\n#\n# Words.\n\n# %%\nx = 2\nprint("seen")\nx + 1\n'
    cells = run_cells(read_cells(text), Path())
    assert [cell.output for cell in cells] == ["", "seen\n3"]
    page = as_markdown(cells, "it.ipynb")
    assert page.startswith(
        "# Title\n\nWords.\n\n[Download as a notebook](it.ipynb)\n\n```python\nx"
    )
    assert "```text\nseen\n3\n```" in page
    notebook = json.loads(as_ipynb(cells))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert [cell["cell_type"] for cell in notebook["cells"]] == ["markdown", "code"]
    assert notebook["cells"][1]["outputs"][0]["text"] == "seen\n3"


def test_an_error_in_a_cell_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_cells([Cell("1 / 0", is_code=True)], Path())
