"""Two methods on the same problems: `compare --paired`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stir_train.errors import ConfigError
from stir_train.tools import paired
from stir_train.tools.compare import read_results
from tests.support.commands import stir_train


def test_two_methods_are_compared_on_the_same_problems(finished: Path) -> None:
    run = finished / "smoke"
    results = read_results(run)
    row = next(row.metrics for row in results.methods if row.name == "stir")
    pair = paired.pair_of([run], "stir,greedy")
    found, reference = paired.compare_pair(*pair)
    assert (found.delta_accuracy, found.delta_accuracy_ci95) == (
        row.delta_accuracy,
        row.delta_accuracy_ci95,
    ), "against greedy decoding it is the row of the results"
    assert found.delta_tokens_fraction == row.delta_tokens_fraction
    assert reference.delta_accuracy == 0
    turned, _ = paired.compare_pair(*reversed(pair))
    assert (turned.wins, turned.losses) == (found.losses, found.wins)
    told = " ".join(paired.describe(*pair).split())
    assert f"stir solves {found.accuracy:.1%} of 24 held-out problems, greedy" in told
    copy = finished / "again"
    if not copy.exists():
        shutil.copytree(run, copy)
    told = stir_train("compare", str(run), str(copy), "--paired", "lora-student")
    assert "no clear difference (+0.0" in " ".join(told.stdout.split())


@pytest.mark.parametrize("methods", ["stir", "stir,stir", "a,b,c", "stir,"])
def test_what_is_not_a_pair_is_refused(tmp_path: Path, methods: str) -> None:
    with pytest.raises(ConfigError, match="--paired"):
        paired.pair_of([tmp_path], methods)
    with pytest.raises(ConfigError, match="--paired"):
        paired.pair_of([tmp_path, tmp_path], methods)
