"""Results of several runs side by side."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from stir_train.artifacts.run_dir import RunDir, StageInputs
from stir_train.errors import ArtifactError
from stir_train.evals.comparison_page import render_comparison, warnings_of
from stir_train.evals.frontier import frontier, undominated
from stir_train.tools.compare import (
    as_markdown,
    as_table,
    by_method_markdown,
    result_rows,
    write_plot,
)
from stir_train.types.results import MethodRow, OutOfDomainResults
from tests.support.commands import stir_train
from tests.support.results import metrics, results


def test_runs_that_are_not_finished_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no run directory"):
        result_rows([tmp_path / "none"])
    (tmp_path / "run").mkdir()
    with pytest.raises(ArtifactError, match="evaluate stage is missing"):
        result_rows([tmp_path / "run"])
    rows = [("a", "greedy", "", "1.0", "", "2.0", "", "2.0", "0.5%", "")]
    assert (
        as_markdown(rows).splitlines()[2] == "| a | greedy |  | 1.0 |  | 2.0 |  | 2.0 | 0.5% |  |"
    )


def test_tasks_outside_the_harvest_have_rows_under_the_settings_of_their_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = tuple(metrics(name, accuracy=0.25) for name in ("greedy", "stir"))
    found = results(
        "greedy", "stir", out_of_domain=(OutOfDomainResults("lists", 20, "bb", elsewhere),)
    )
    monkeypatch.setattr("stir_train.tools.compare.read_results", lambda run: found)
    rows = [row[:4] for row in result_rows([Path("runs/one"), Path("runs/two")])]
    assert rows[1] == ("one", "stir", "stir-label", "50.0")
    assert rows[3] == ("one on lists", "stir", "stir-label", "25.0")
    assert [row[0] for row in rows[4:]] == ["two", "two", "two on lists", "two on lists"]


def test_runs_without_results_are_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = RunDir(tmp_path / "evaluated").stage("evaluate")
    evaluated.begin(StageInputs(config={}, sources={}))
    evaluated.finish({})
    (tmp_path / "begun").mkdir()
    found = results("greedy", "stir")
    monkeypatch.setattr("stir_train.tools.compare.read_results", lambda run: found)
    done = stir_train("compare", *map(str, sorted(tmp_path.iterdir())))
    assert done.returncode == 0, done.stderr
    assert "begun: left out, it has no finished evaluation" in " ".join(done.stderr.split())
    assert "evaluated" in done.stdout
    assert "begun" not in done.stdout


def test_a_comparison_fits_80_columns_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = MethodRow(metrics("best"), "value-depth0.8-strength2-doubt1-candidates16", "tune")
    found = results("greedy", "stir", "control-random-vectors", rows=(chosen,))
    monkeypatch.setattr("stir_train.tools.compare.read_results", lambda run: found)
    rows = result_rows([Path("first/demo"), Path("second/demo")])
    out = StringIO()
    Console(file=out, width=80).print(as_table(rows))
    shown = out.getvalue()
    assert "…" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    for run in ("first/demo", "second/demo"):
        assert shown.count(f"{run} ") == 1
    for row in rows:
        for figure in (row[1], *row[3:]):  # settings are folded
            assert figure in shown
    for setting in chosen.label.split("-"):
        assert setting in shown, "no setting is cut in two"


def test_a_page_of_several_runs_stands_alone_and_warns_of_what_cannot_be_compared() -> None:
    runs = {"one": results("greedy", "stir"), "two": results("greedy", "deer")}
    assert warnings_of(runs) == []
    page = render_comparison(runs)
    assert "&lt;tiny&gt;" in page
    assert "http" not in page
    assert "width=device-width" in page
    assert page.count("<svg") == 2
    for shown in ("stir", "deer", "+10.0 points", "[+5.0, +15.0]"):
        assert shown in page
    other = {**runs, "three": results("greedy", items_sha256="bb", test_openings=2)}
    assert [w for w in warnings_of(other) if "different test items: one, two | three" in w]
    assert [w for w in warnings_of(other) if "opened for 2 choices" in w]


def test_the_frontier_is_what_no_other_method_equals_at_fewer_tokens() -> None:
    figures = {"a": (60, 0.5), "b": (50, 0.7), "c": (80, 0.9), "d": (80, 0.8), "e": (90, 0.9)}
    rows = [
        metrics(name, tokens_mean=tokens, accuracy=right, accuracy_ci95=(right, right))
        for name, (tokens, right) in figures.items()
    ]
    best = undominated(rows)
    assert [row.name for row in best] == ["b", "c"]
    for row in rows:
        beaten_by = [
            other
            for other in rows
            if other.tokens_mean <= row.tokens_mean
            and other.accuracy >= row.accuracy
            and other is not row
        ]
        assert bool(beaten_by) == (row not in best)
    assert frontier(rows).startswith("<svg")


def test_one_plot_has_a_panel_a_run_and_stands_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = results("greedy", "stir", "deer")
    monkeypatch.setattr("stir_train.tools.compare.read_results", lambda run: found)
    for runs in (["one"], ["one", "two", "three"]):
        write_plot([Path(name) for name in runs], tmp_path / "plot.svg")
        text = (tmp_path / "plot.svg").read_text()
        drawn = ElementTree.fromstring(text)  # with its name spaces, which an inline one lacks
        assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--" not in text
        for name in runs:
            assert text.count(f">{name}<") == 1
        assert text.count(">STIR<") == 1, "one legend for all"


def test_one_row_a_method_with_a_dash_where_a_run_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    by_run = {"one": results("greedy", "stir"), "two": results("greedy", "deer")}
    monkeypatch.setattr("stir_train.tools.compare.read_results", lambda run: by_run[run.name])
    head, rule, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in by_method_markdown([Path("one"), Path("two")]).splitlines()
    ]
    assert head[0] == "method"
    assert {len(line) for line in (head, rule, *rows)} == {11}
    assert [row[0] for row in rows] == ["greedy", "stir", "deer"]
    assert rows[1][6:] == ["-"] * 5
    assert rows[2][1:6] == ["-"] * 5
    assert rows[2][7] == "+10.0 [+5.0, +15.0]"
    assert head[4:6] == ["cut off", "no marker"]
    assert all(cell.endswith("%") for cell in rows[0][4:6])
    assert rows[0][1].startswith("**"), "of equals the first is on the frontier"
    assert not rows[1][1].startswith("**")
