"""The mean vector in other tools' formats does there what it does here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader

from stir_train.errors import ModelError
from stir_train.export.vector import save_gguf_vector, save_lm_eval_vector
from stir_train.models.hooks import block_hooks
from stir_train.models.load import LoadedModel

BLOCK = 3


@pytest.fixture
def vector(loaded: LoadedModel) -> torch.Tensor:
    return torch.randn(loaded.identity.width, generator=torch.Generator().manual_seed(0))


def test_a_gguf_vector_reads_back(
    loaded: LoadedModel, vector: torch.Tensor, tmp_path: Path
) -> None:
    save_gguf_vector(loaded, vector, BLOCK, tmp_path / "v.gguf")
    reader = GGUFReader(tmp_path / "v.gguf")
    fields = {
        name: reader.fields[name].contents()
        for name in (
            "general.architecture",
            "controlvector.model_hint",
            "controlvector.layer_count",
        )
    }
    assert list(fields.values()) == ["controlvector", "llama", loaded.identity.num_blocks]
    (tensor,) = reader.tensors
    assert tensor.name == f"direction.{BLOCK}"
    assert torch.equal(torch.from_numpy(tensor.data.copy()), vector)
    with pytest.raises(ModelError, match=r"direction\.0"):
        save_gguf_vector(loaded, vector, 0, tmp_path / "w.gguf")


def test_an_lm_eval_file_steers_as_that_tool_applies_it(
    loaded: LoadedModel, vector: torch.Tensor, tmp_path: Path
) -> None:
    save_lm_eval_vector(loaded, vector, BLOCK, tmp_path / "steer.pt")
    ((name, entry),) = torch.load(tmp_path / "steer.pt", weights_only=True).items()
    assert entry["action"] == "add"
    assert entry["head_index"] is None
    tokens = torch.tensor([[5, 9, 12, 20, 7]])
    added = entry["steering_vector"] * entry["steering_coefficient"]
    # lm-eval 0.4.13 looks modules up under base_model, and adds to what they return.
    module = dict(loaded.model.base_model.named_modules())[name]
    handle = module.register_forward_hook(lambda _m, _i, out: out + added)
    try:
        theirs = loaded.model(input_ids=tokens).logits
    finally:
        handle.remove()
    with block_hooks(loaded.blocks, {BLOCK: lambda states: states + vector}):
        ours = loaded.model(input_ids=tokens).logits
    torch.testing.assert_close(theirs, ours)
    assert not torch.allclose(ours, loaded.model(input_ids=tokens).logits)
