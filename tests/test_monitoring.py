"""What people watch: nobody's text is markup, and attempts add up to one record."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from stir_train.artifacts.atomic import remove_leftovers
from stir_train.monitoring.console import caution, good, make_console, progress
from stir_train.monitoring.metrics import MetricsFile, WandbLabels, open_metrics
from tests.support.wandb_records import read_records

MARKUP = "[/b] [red]x[/] [link=file:///]y :smile:"
PACKAGE = Path(__file__).parents[1] / "stir_train"
ATTEMPT = """
import os, sys
from pathlib import Path
from stir_train.monitoring.metrics import WandbLabels, open_metrics
first, kill = int(sys.argv[2]), sys.argv[3] == "kill"
with open_metrics(Path(sys.argv[1]), wandb_mode="offline", labels=WandbLabels("p", "n"), config={},
                  warn=print) as metrics:
    for row in range(first, first + 3):
        metrics.log("adapter", {"row": row}, step=row)
    metrics.table("eval", "methods", [{"row": first}])
    if kill:
        os._exit(9)
"""


def test_text_is_shown_as_it_is_wherever_it_stands() -> None:
    out = io.StringIO()
    console = make_console(out)
    table = Table(title=MARKUP)
    table.add_column(MARKUP)
    table.add_row(MARKUP)
    for shown in (MARKUP, good(MARKUP), caution(MARKUP), table):
        console.print(shown, soft_wrap=True)
    console.width = 400
    with progress(console, MARKUP, 1, MARKUP) as advance:
        advance(note=MARKUP)
    assert out.getvalue().count(MARKUP) == 9


def test_text_is_shown_as_it_is_beside_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    console = make_console(out)
    console.width = 400
    with progress(console, MARKUP, 1, MARKUP) as advance:
        advance(note=MARKUP)
    assert out.getvalue().count("[/b]") >= 3


def test_there_is_one_way_to_a_console_and_nothing_writes_markup() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name != "console.py":
            assert " Console(" not in text, path
            assert "from_markup" not in text, path
        assert "[/]" not in text, path


def test_a_cut_line_of_the_metrics_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for values, cut in (({"a": 1}, 5), ({"b": 2}, 0), ({"c": 3}, 0)):
        file = MetricsFile(path)
        file.log("stage", values)
        file.close()
        path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert [json.loads(line).get(key) for line, key in zip(lines[1:], "bc", strict=True)] == [2, 3]


def test_offline_attempts_that_are_synced_are_one_run_with_every_row(tmp_path: Path) -> None:
    # Not those of a wandb that another test has begun in this process: attempts share none.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("WANDB")
    }
    for number, end in enumerate(("kill", "kill", "well", "well")):
        argv = [sys.executable, "-c", ATTEMPT, str(tmp_path), str(3 * number), end]
        subprocess.run(argv, check=False, capture_output=True, timeout=120, env=environment)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 4
    ids, rows, steps = set(), [], []
    for file in files:
        for record in read_records(file):
            if record.run.run_id:
                ids.add(record.run.run_id)
                assert record.run.resume
            values = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            if values:
                steps.append(record.history.step.num)
            if "adapter/row" in values:
                rows.append(json.loads(values["adapter/row"]))
    assert ids == {(tmp_path / "wandb_id").read_text()}
    assert steps == sorted(set(steps))  # a server keeps the first row of a number
    assert set(range(6, 12)) <= set(rows)
    assert rows == sorted(rows)


@pytest.mark.parametrize("held", ["", "\n", "\0\0\0\0", "a b"])
def test_a_file_without_an_id_costs_a_word_and_not_the_run(tmp_path: Path, held: str) -> None:
    (tmp_path / "wandb_id").write_text(held)
    (tmp_path / "wandb_step").write_text(held)
    said: list[str] = []
    for _ in range(2):
        with open_metrics(
            tmp_path,
            wandb_mode="offline",
            labels=WandbLabels("p", "n"),
            config={},
            warn=said.append,
        ) as metrics:
            metrics.log("stage", {"a": 1})
    assert len(said) == 1
    assert "a new wandb run" in said[0]
    assert (tmp_path / "wandb_id").read_text() in said[0]


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a" / ".checksums").mkdir(parents=True)
    kept = [tmp_path / "a" / "x.json", tmp_path / "a" / ".checksums" / "x.json"]
    left = [tmp_path / "a" / "x.json.host-1.partial", tmp_path / "a" / ".tmpabc"]
    for path in (*kept, *left):
        path.touch()
    remove_leftovers(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
    remove_leftovers(tmp_path / "nothing")
