"""A LoRA student through vLLM: the trainer's greedy tokens, and PEFT's, with steering on top too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from stir_train.artifacts.run_dir import StageDir, StageInputs
from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig
from stir_train.errors import VerificationError
from stir_train.export.adapter import PROBES_FILE, save_adapter, save_probes
from stir_train.export.served import verify_served
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.generation.vllm.engine import VLLMEngine
from stir_train.models.load import LoadedModel, load_model
from stir_train.models.lora import add_lora, load_adapter
from stir_train.stores.adapters import ADAPTER_DIRECTORY
from tests.vllm.conftest import Pair
from tests.vllm.models import save_widened
from tests.vllm.test_same_tokens import steering_named


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(name=str(save_widened(tmp_path_factory.mktemp("model") / "wide")))


@pytest.fixture(scope="module")
def trained(base: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with effect."""
    stage = StageDir(tmp_path_factory.mktemp("run") / "distill")
    stage.begin(StageInputs({}, {}))
    model = add_lora(load_model(base), DistillConfig(rank=8, alpha=16), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, stage)
    probes = torch.randint(2, 60, (6, 12), generator=generator).tolist()
    save_probes(model, probes, stage)
    return stage.path


@pytest.fixture(scope="module")
def student(base: ModelConfig, trained: Path) -> LoadedModel:
    return load_adapter(load_model(base), trained / ADAPTER_DIRECTORY)


def test_greedy_tokens_of_the_probes_and_another_base_is_found_out(
    student: LoadedModel, trained: Path, wide: LoadedModel
) -> None:
    served = VLLMEngine(student, max_rows=4)
    result = verify_served(student, served, trained / PROBES_FILE, tolerance=1e-4)
    served.close()
    assert result.num_equal == result.num_tokens == 6 * 16
    without = VLLMEngine(wide, max_rows=4)
    with pytest.raises(VerificationError, match=r"token \d+ of probe \d+ .* is the adapter served"):
        verify_served(student, without, trained / PROBES_FILE, tolerance=1e-4)
    without.close()


def test_a_student_decodes_as_under_peft_and_is_steered(
    student: LoadedModel,
    pair: Pair,
    requests: list[GenerationRequest],
    briefly: SamplingParams,
) -> None:
    of_student = dataclasses.replace(
        pair,
        ours=DecodeEngine(student, max_rows=5),
        theirs=VLLMEngine(student, max_rows=5),
    )
    plain = of_student.require_same(requests, briefly)
    of_student.require_same(requests, briefly, steering_named("static"))
    base = pair.theirs.generate(requests, briefly, seed=3)
    assert [r.token_ids for r in plain.rollouts] != [r.token_ids for r in base.rollouts]
    of_student.theirs.close()
