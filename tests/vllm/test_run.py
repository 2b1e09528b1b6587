"""A stage with ``generation.backend: vllm``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stir_train.artifacts.run_dir import STAGE_FILE, RunDir
from stir_train.stores.rollouts import RolloutStore
from tests.support.smoke import run_smoke
from tests.vllm.models import save_widened

SMALL = (
    "splits={num_harvest: 8, num_tune: 4, num_test: 4}",
    "generation={max_new_tokens: 96, max_rows: 16, chunk_completions: 16}",
    "rollout.num_samples=2",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model as a directory, its heads wide enough for vLLM."""
    return f"model.name={save_widened(tmp_path_factory.mktemp('model') / 'wide')}"


def test_rollouts_of_both_backends_are_the_same_and_know_what_made_them(
    model: str, tmp_path: Path
) -> None:
    made, inputs = {}, {}
    for backend in ("transformers", "vllm"):
        arguments = (*SMALL, model, f"generation.backend={backend}", f"name={backend}")
        done = run_smoke(tmp_path, *arguments, verb="rollout")
        assert done.returncode == 0, done.stderr
        stage = RunDir(tmp_path / backend).stage("rollout")
        made[backend] = [g.rollout.token_ids for g in RolloutStore(stage).read()]
        inputs[backend] = json.dumps(json.loads((stage.path / STAGE_FILE).read_text()))
    assert made["vllm"] == made["transformers"]
    assert '"version of vllm": "0.32' in inputs["vllm"]
    assert "version of" not in inputs["transformers"]
