"""The rollout stage with vLLM's own OpenAI-compatible server as the sampler."""

from __future__ import annotations

from pathlib import Path

import pytest

from stir_train.artifacts.run_dir import RunDir
from stir_train.stores.rollouts import RolloutStore
from tests.support.smoke import run_smoke
from tests.vllm.models import save_widened
from tests.vllm.serving import serving_alone

SMALL = (
    "splits={num_harvest: 4, num_tune: 4, num_test: 4}",
    "generation={max_new_tokens: 96, max_rows: 16, chunk_completions: 8}",
    "rollout.num_samples=2",
)
KEY = "a-key-of-the-test"


def test_a_vllm_server_samples_the_rollouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_widened(tmp_path / "wide")
    monkeypatch.setenv("STIR_TEST_KEY", KEY)
    ours = ("--served-model-name=wide", "--dtype=float32", f"--api-key={KEY}")
    with serving_alone(model, *ours, "--max-model-len=384", "--enforce-eager") as server:
        asked = f"{{server: '{server.url}', served_model: wide, key_variable: STIR_TEST_KEY}}"
        done = run_smoke(
            tmp_path, *SMALL, f"model.name={model}", f"external={asked}", verb="rollout"
        )
        assert done.returncode == 0, done.stderr
        keyless = asked.replace(", key_variable: STIR_TEST_KEY", "")
        refused = run_smoke(
            tmp_path, *SMALL, f"model.name={model}", f"external={keyless}", "name=b", verb="rollout"
        )
        assert refused.returncode == 1
        assert "status 401" in refused.stderr
    made = [g.rollout for g in RolloutStore(RunDir(tmp_path / "smoke").stage("rollout")).read()]
    assert len(made) == 8
    assert len({rollout.token_ids for rollout in made}) > 4
    # That they are of this model, and end as its completions do, the stage itself has checked.
    assert {rollout.finish_reason for rollout in made} >= {"stop"}
