"""A model whose files are damaged, or say what is not so, is an error of ours that names it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stir_train.config.inputs import ModelConfig
from stir_train.errors import ModelError
from stir_train.models.describe import describe_model
from stir_train.models.load import load_model
from stir_train.models.locate import EMBEDDED_ROOT

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
CONTENTS = {"empty": b"", "noise": b"\x80\x02\xff\x00" * 16, "a list": b"[1, 2]", "null": b"null"}
SETTINGS = [
    ("config.json", {"hidden_size": "x"}),
    ("config.json", {"hidden_size": 32}),
    ("config.json", {"num_attention_heads": 3}),
    ("config.json", {"num_key_value_heads": 0}),
    ("config.json", {"num_hidden_layers": 9}),
    ("config.json", {"vocab_size": 5}),
    ("config.json", {"model_type": "nothing"}),
    ("config.json", {"model_type": "t5"}),
    ("config.json", {"dtype": "nothing"}),
    ("config.json", {"quantization_config": 3}),
    ("config.json", {"rope_parameters": {"rope_type": "x"}}),
    ("config.json", {"hidden_act": "nothing"}),
    ("config.json", {"pad_token_id": 10**6}),
    ("config.json", {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "own"}),
    ("generation_config.json", {"eos_token_id": "x"}),
    ("generation_config.json", {"eos_token_id": [1, "x"]}),
    ("generation_config.json", {"eos_token_id": {"a": 1}}),
    ("generation_config.json", {"eos_token_id": True}),
    ("tokenizer_config.json", {"tokenizer_class": 3}),
    ("tokenizer_config.json", {"chat_template": [{"name": "a"}]}),
    ("tokenizer_config.json", {"eos_token": 5}),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED_ROOT / "addition", tmp_path / "model"))


def _refused(model: Path) -> str:
    """What is said of it: when it is described, or at the latest when it is loaded."""
    with pytest.raises(ModelError) as refused:
        _describe_and_load(ModelConfig(name=str(model)))
    return str(refused.value)


def _describe_and_load(config: ModelConfig) -> None:
    describe_model(config)
    load_model(config)


@pytest.mark.parametrize("what", [*CONTENTS, "half", "a folder"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_by_the_models_name(model: Path, name: str, what: str) -> None:
    file = model / name
    content = file.read_bytes()
    if what == "a folder":
        file.unlink()
        file.mkdir()
        if name != "model.safetensors":
            return  # the libraries take it for absent
    else:
        file.write_bytes(CONTENTS.get(what, content[: len(content) // 2]))
    assert "model" in _refused(model)


@pytest.mark.parametrize(("name", "changes"), SETTINGS)
def test_settings_that_describe_no_model_are_refused(
    model: Path, name: str, changes: dict[str, Any]
) -> None:
    file = model / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert "model.name" in _refused(model)


def _pickled_code(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(_Code(model / "executed")))


def _half_a_checkpoint(model: Path) -> None:
    torch.save(load_file(EMBEDDED_ROOT / "addition" / FILES[2]), model / "pytorch_model.bin")
    content = (model / "pytorch_model.bin").read_bytes()
    (model / "pytorch_model.bin").write_bytes(content[: len(content) // 2])


def _an_index_alone(model: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model-00001.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


class _Code:
    """Runs when it is unpickled, if it ever is."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("put", [_pickled_code, _half_a_checkpoint, _an_index_alone])
def test_weights_that_are_code_or_not_whole_are_refused(
    model: Path, put: Callable[[Path], None]
) -> None:
    (model / "model.safetensors").unlink()
    put(model)
    assert "model.name" in _refused(model)
    assert not (model / "executed").exists()
