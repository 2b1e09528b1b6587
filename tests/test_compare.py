"""Results of several runs side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from stir_train.errors import ArtifactError
from stir_train.recipes.compare import as_markdown, result_rows


def test_runs_that_are_not_finished_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no run directory"):
        result_rows([tmp_path / "none"])
    (tmp_path / "run").mkdir()
    with pytest.raises(ArtifactError, match="eval stage is missing"):
        result_rows([tmp_path / "run"])
    rows = [("a", "greedy", "", "1.0", "", "2.0", "", "2.0")]
    assert as_markdown(rows).splitlines()[2] == "| a | greedy |  | 1.0 |  | 2.0 |  | 2.0 |"
