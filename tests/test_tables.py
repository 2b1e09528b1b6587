"""Results in a terminal of 80 columns: nothing is cut off, and every figure is there."""

from __future__ import annotations

import dataclasses
import io

from rich.console import Console
from rich.table import Table

from stir_train.config.baselines import BASELINES
from stir_train.evals.tables import results_table, tables
from stir_train.types.results import (
    MethodRow,
    OutOfDomainResults,
    Results,
    SampledMetrics,
    StudentComparison,
)
from tests.support.results import metrics, results

WIDTH = 80
OURS = ("greedy", "stir-published", "stir", "control-random-vectors", "lora-student")


def _rendered(table: Table) -> str:
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, color_system=None).print(table)
    return stream.getvalue()


def _results() -> Results:
    rows = tuple(
        MethodRow(
            metrics(
                name,
                tokens_mean=1136.25,
                truncated_rate=0.125,
                no_marker_rate=0.025,
                delta_accuracy_ci95=(-0.125, 0.155),
                delta_tokens_fraction=1.124,
                delta_tokens_ci95=(1.051, 1.202),
            ),
            name,
            "tune",
        )
        for name in (*OURS, *BASELINES)
    )
    pass_at = {1: 0.5, 2: 0.6, 4: 1.0, 8: 1.0}
    interval = (-0.125, 0.155)
    sampled = SampledMetrics(
        "lora-student", 8, 0.5, interval, -0.101, interval, pass_at, 0.75, interval, 1136.25
    )
    student = StudentComparison(
        "lora-rejection", "lora-rejection", None, 0.5, -0.101, interval, -0.201, interval
    )
    out_of_domain = OutOfDomainResults(
        "sorting", 99, "aa", (metrics("greedy"), metrics("lora-student"))
    )
    return dataclasses.replace(
        results(),
        methods=rows,
        students=(student,),
        sampled=(sampled,),
        out_of_domain=(out_of_domain,),
    )


def test_every_table_fits_80_columns_whole() -> None:
    found = tables(_results())
    assert len(found) == 4
    for table in found:
        text = _rendered(table)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= WIDTH
        for row in zip(*(column.cells for column in table.columns), strict=True):
            for cell in row:
                for line in str(cell).splitlines():
                    assert line.strip() in text, "a figure broken over two lines cannot be read"


def test_a_method_has_its_figures_with_what_was_cut_off_and_lacked_a_marker() -> None:
    lines = _rendered(results_table(_results())).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("stir "))
    assert lines[first].split() == ["stir", "50.0%", "1136.2", "(70.0)", "12.5%"]
    for shown in ("longer", "2.5%", "+10.0 [-12.5, +15.5]", "+112.4 [+105.1, +120.2]"):
        assert shown in lines[first + 1]
    baseline = next(i for i, line in enumerate(lines) if line.startswith("greedy"))
    assert "[" not in lines[baseline + 1], "greedy decoding is compared with nothing"
