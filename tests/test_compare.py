"""Results of several runs side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from stir_train.errors import ArtifactError
from stir_train.evals.comparison_page import render_comparison, warnings_of
from stir_train.evals.frontier import frontier, undominated
from stir_train.tools.compare import as_markdown, result_rows


def test_runs_that_are_not_finished_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no run directory"):
        result_rows([tmp_path / "none"])
    (tmp_path / "run").mkdir()
    with pytest.raises(ArtifactError, match="evaluate stage is missing"):
        result_rows([tmp_path / "run"])
    rows = [("a", "greedy", "", "1.0", "", "2.0", "", "2.0")]
    assert as_markdown(rows).splitlines()[2] == "| a | greedy |  | 1.0 |  | 2.0 |  | 2.0 |"


def _results(items: str, *methods: str, openings: int = 1) -> dict[str, object]:
    rows = [
        {
            "name": name,
            "label": f"{name}-label",
            "accuracy": 0.5,
            "accuracy_ci95": [0.4, 0.6],
            "tokens_mean": 70.0,
            "forward_passes_mean": 70.0,
            "delta_accuracy": 0.1,
            "delta_accuracy_ci95": [0.05, 0.15],
            "delta_tokens_fraction": -0.2,
            "delta_tokens_ci95": [-0.3, -0.1],
        }
        for name in methods
    ]
    return {
        "task": "sums",
        "items_sha256": items,
        "num_items": 20,
        "test_openings": openings,
        "seeds": [0],
        "model": {"name": "<tiny>"},
        "methods": rows,
    }


def test_tasks_outside_the_harvest_have_rows_under_the_settings_of_their_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = _results("aa", "greedy", "stir")
    elsewhere = [
        {key: value for key, value in row.items() if key != "label"} | {"accuracy": 0.25}
        for row in _results("bb", "greedy", "stir")["methods"]  # type: ignore[attr-defined]
    ]
    results["out_of_domain"] = [{"task": "lists", "methods": elsewhere}]
    monkeypatch.setattr("stir_train.tools.compare.read_results", lambda run: results)
    rows = [row[:4] for row in result_rows([Path("runs/one"), Path("runs/two")])]
    assert rows[1] == ("one", "stir", "stir-label", "50.0")
    assert rows[3] == ("one on lists", "stir", "stir-label", "25.0")
    assert [row[0] for row in rows[4:]] == ["two", "two", "two on lists", "two on lists"]


def test_a_page_of_several_runs_stands_alone_and_warns_of_what_cannot_be_compared() -> None:
    runs = {"one": _results("aa", "greedy", "stir"), "two": _results("aa", "greedy", "deer")}
    assert warnings_of(runs) == []
    page = render_comparison(runs)
    assert "&lt;tiny&gt;" in page
    assert "http" not in page
    assert page.count("data:image/png") == 2
    for shown in ("stir", "deer", "+10.0 %", "[5.0, 15.0]"):
        assert shown in page
    other = {**runs, "three": _results("bb", "greedy", openings=2)}
    assert [w for w in warnings_of(other) if "different test items: one, two | three" in w]
    assert [w for w in warnings_of(other) if "opened for 2 choices" in w]


def test_the_frontier_is_what_no_other_method_equals_at_fewer_tokens() -> None:
    figures = {"a": (60, 0.5), "b": (50, 0.7), "c": (80, 0.9), "d": (80, 0.8), "e": (90, 0.9)}
    rows = [
        {"name": name, "tokens_mean": tokens, "accuracy": right, "accuracy_ci95": (right, right)}
        for name, (tokens, right) in figures.items()
    ]
    best = undominated(rows)
    assert [row["name"] for row in best] == ["b", "c"]
    for row in rows:
        beaten_by = [
            other
            for other in rows
            if other["tokens_mean"] <= row["tokens_mean"]
            and other["accuracy"] >= row["accuracy"]
            and other is not row
        ]
        assert bool(beaten_by) == (row not in best)
    assert frontier(rows).startswith("data:image/png;base64,")
