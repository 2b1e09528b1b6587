"""Reading a model's config and tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PretrainedConfig

from stir_train.models import pretrained
from stir_train.models.identity import weights_sha256


def test_a_gguf_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, num_read = tmp_path / "small.gguf", 0

    def read(_path: str, _files: dict[str, Any]) -> PretrainedConfig:
        nonlocal num_read
        num_read += 1
        return PretrainedConfig(bos_token_id=num_read)

    monkeypatch.setattr(pretrained, "_read_config", read)
    settings = {"gguf_file": file.name, "attn_implementation": "sdpa"}
    file.write_bytes(b"one")
    first = pretrained.read_config(str(tmp_path), settings)
    first.bos_token_id = 9
    again = pretrained.read_config(str(tmp_path), settings)
    assert (num_read, again.bos_token_id) == (1, 1), "read once, and the copy is the caller's own"
    file.write_bytes(b"other")
    assert pretrained.read_config(str(tmp_path), settings).bos_token_id == 2
    pretrained.read_config(str(tmp_path), {})
    pretrained.read_config(str(tmp_path), {})
    assert num_read == 4, "a directory is read whenever it is asked for"


def test_the_weights_of_a_gguf_file_are_that_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"

    def found(content: str, **beside: str) -> str:
        for name, text in {file.stem: content, **beside}.items():
            (tmp_path / f"{name}.gguf").write_text(text)
        return weights_sha256(str(tmp_path), "", gguf_file=file.name)

    first = found("weights")
    (tmp_path / "config.json").write_text("{}")
    assert found("weights", other="others") == first
    assert found("changed weights") != first
    assert weights_sha256("owner/name", "c0ffee", gguf_file="a.gguf") != weights_sha256(
        "owner/name", "c0ffee", gguf_file="b.gguf"
    )
