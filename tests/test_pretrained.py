"""Reading a model's config and tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PretrainedConfig

from stir_train.models import pretrained


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
