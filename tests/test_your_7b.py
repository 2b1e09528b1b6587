"""The figures of docs/your-7b.md are those that --dry-run prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.commands import stir_train

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "gsm8k" / "qwen2.5-7b-instruct.yaml")
PAGE = (ROOT / "docs" / "your-7b.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"\| (as they are|`\S.*`) \| \d", line)
]
SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
ESTIMATE = re.compile(
    r"at most ([\d,]+) tokens on (\d+) replicas?: about ([\d.]+) h, ([\d.]+) GiB of disk; per process "
    r"([\d.]+) GiB to generate(?:, ([\d.]+) GiB to train)?"
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """As much of Qwen2.5-7B as an estimate reads."""
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    return f"model.name={tmp_path}"


def test_there_are_rows() -> None:
    assert len(ROWS) == 4


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_what_a_dry_run_estimates(row: list[str], model: str, tmp_path: Path) -> None:
    settings, num_gpus, tokens, hours, gpu_hours, disk, generate, train = row
    changed = settings.strip("`").split() if "=" in settings else []
    site = str(ROOT / "slurm" / "sites" / f"gpu{num_gpus}.yaml")
    shown = stir_train("run", CONFIG, model, *changed, "--dry-run", "--site", site)
    assert shown.returncode == 0, shown.stderr
    found = ESTIMATE.search(" ".join(shown.stderr.split()))
    assert found is not None, shown.stderr
    assert found.groups()[:4] == (tokens, num_gpus, hours, disk)
    assert f"{float(found[5]):.0f}" == generate
    assert train == ("-" if found[6] is None else f"{float(found[6]):.0f}")
    assert float(gpu_hours) == pytest.approx(float(hours) * int(num_gpus), abs=0.5)


def test_one_gpu_is_too_small_for_the_settings_as_they_are(model: str) -> None:
    site = str(ROOT / "slurm" / "sites" / "gpu1.yaml")
    shown = stir_train("run", CONFIG, model, "--dry-run", "--site", site)
    assert shown.returncode == 1
    assert "distillation needs up to 158 GiB" in shown.stderr
    assert "would need 158 GiB" in PAGE
