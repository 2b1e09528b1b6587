"""What a model is, and what is refused before it is used."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig
from stir_train.errors import ModelError
from stir_train.export.adapter import save_merged
from stir_train.models import identity as identity_module
from stir_train.models.describe import describe_model
from stir_train.models.load import load_model, resolve_device
from stir_train.models.locate import resolve_model_path
from stir_train.models.lora import make_whole_student
from stir_train.models.public_name import public_name

EMBEDDED = Path(resolve_model_path("embedded/addition"))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded model to change, and a cache of its own."""
    monkeypatch.setattr(identity_module, "CACHE", tmp_path / "cache")
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model"))


def parts_of(directory: Path) -> dict[str, str]:
    return describe_model(ModelConfig(name=str(directory))).identity.parts()


def edit_json(path: Path, **changes: object) -> None:
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**held, **changes}))


def change_one_weight(directory: Path) -> None:
    """In the middle of the file, where a hash of its ends would not look."""
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replace_binary_weights(directory: Path) -> None:
    (directory / "pytorch_model.bin").write_bytes(b"other weights")


def change_stop_ids(directory: Path) -> None:
    edit_json(directory / "generation_config.json", eos_token_id=[1, 5])


def change_chat_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")


def change_tokenizer(directory: Path) -> None:
    edit_json(directory / "tokenizer.json", normalizer={"type": "Lowercase"})


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (change_one_weight, "model weights"),
        (replace_binary_weights, "model weights"),
        (change_stop_ids, "stop token ids"),
        (change_chat_template, "chat template"),
        (change_tokenizer, "tokenizer"),
    ],
)
def test_whatever_determines_tokens_is_part_of_the_identity(
    directory: Path, change: object, part: str
) -> None:
    before = parts_of(directory)
    assert parts_of(directory) == before, "asked twice, answered from the cache the second time"
    change(directory)  # type: ignore[operator]
    after = parts_of(directory)
    assert {name for name in before if before[name] != after[name]} == {part}


def test_a_model_is_what_its_files_describe(directory: Path) -> None:
    change_stop_ids(directory)
    config = ModelConfig(name=str(directory))
    assert load_model(config).identity == describe_model(config).identity
    assert load_model(config).stop_token_ids == (1, 5)


def test_a_checkpoint_without_some_weights_is_refused(directory: Path) -> None:
    file = directory / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if "layers.3.mlp" not in k}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing from its files: model\.layers\.3\.mlp"):
        load_model(ModelConfig(name=str(directory)))


def test_a_config_of_more_blocks_than_the_checkpoint_has_is_refused(directory: Path) -> None:
    edit_json(directory / "config.json", num_hidden_layers=7, layer_types=None)
    with pytest.raises(ModelError, match=r"model\.layers\.6"):
        load_model(ModelConfig(name=str(directory)))


def test_a_config_of_fewer_blocks_than_the_checkpoint_has_is_refused(directory: Path) -> None:
    edit_json(directory / "config.json", num_hidden_layers=5, layer_types=None)
    with pytest.raises(ModelError, match=r"blocks that its config leaves out: model\.layers\.5"):
        load_model(ModelConfig(name=str(directory)))


def test_weights_that_are_no_numbers_are_refused(directory: Path) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "mlp" in name)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=f"{name}.*not finite"):
        load_model(ModelConfig(name=str(directory)))


def test_a_gpu_that_is_not_here_is_named() -> None:
    with pytest.raises(ModelError, match=r"model\.device: there is no cuda:99 here"):
        resolve_device("cuda:99")


def test_padding_is_always_a_row_of_the_embedding(directory: Path) -> None:
    loaded = load_model(ModelConfig(name=str(directory)))
    assert loaded.pad_token_id == loaded.tokenizer.pad_token_id
    loaded.tokenizer.add_tokens(["<a token without a row>"])
    loaded.tokenizer.pad_token = "<a token without a row>"
    assert loaded.tokenizer.pad_token_id >= loaded.vocab_size
    assert loaded.pad_token_id == 0


def test_a_gguf_file_that_is_not_there_is_named(directory: Path) -> None:
    (directory / "small.gguf").touch()
    for config in (
        ModelConfig(name=str(directory), gguf_file="large.gguf"),
        ModelConfig(name=str(directory / "large.gguf")),
    ):
        with pytest.raises(ModelError, match=r"no large\.gguf in .*it holds small\.gguf"):
            describe_model(config)


def test_a_merged_student_has_its_bases_dtype_and_is_saved_quietly(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    halved = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    halved.save_pretrained(directory)
    config = ModelConfig(name=str(directory))
    student = make_whole_student(config, DistillConfig(), seed=0).model
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    student.save_pretrained(tmp_path / "adapter")
    base = load_model(config)
    assert base.model.dtype is torch.float32, "on a CPU it is decoded in float32"
    save_merged(base, tmp_path / "adapter", tmp_path / "merged")
    told = "cpu" if not torch.cuda.is_available() else None
    assert os.environ.get("DS_ACCELERATOR") == told, "DeepSpeed warns that it had to guess"
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    original = load_file(directory / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(merged[name], original[name])


def test_a_model_is_called_by_its_hub_id_or_folder_and_never_by_a_path(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--Qwen--Qwen3-0.6B" / "snapshots" / "c1a2"
    saved, plain = tmp_path / "copy", tmp_path / "mine"
    for folder, said in ((cached, {}), (saved, {"_name_or_path": "Qwen/Qwen3-4B"}), (plain, {})):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(said))
    assert public_name(str(cached)) == "Qwen/Qwen3-0.6B"
    assert public_name(str(saved)) == "Qwen/Qwen3-4B"
    assert public_name(str(plain)) == "mine"
    (plain / "config.json").write_text(json.dumps({"_name_or_path": str(plain)}))
    assert public_name(str(plain)) == "mine"
    assert public_name("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert public_name("embedded/addition") == "embedded/addition"
