"""Read a model's config and tokenizer; of a GGUF file once a process.

Every reading of a GGUF file goes through its whole vocabulary string by string: half a minute for 150,000
tokens on a slow core, where a directory's takes a second.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from stir_train.models.locate import which_files

_Stamp = tuple[int, int] | None
"""Time of change and size of a file at hand; None of a hub's, whose content its revision fixes."""


def read_config(path: str, settings: dict[str, Any]) -> PretrainedConfig:
    """The config of a model, the caller's own copy.

    Args:
        path: Directory or hub id.
        settings: Arguments of ``from_pretrained``; those that say which files are read count.
    """
    files = which_files(settings)
    if "gguf_file" not in files:
        return _read_config(path, files)
    return copy.deepcopy(_config_of_gguf(path, tuple(files.items()), _stamp(path, files)))


def read_tokenizer(path: str, settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, the caller's own copy; arguments as of `read_config`."""
    files = which_files(settings)
    if "gguf_file" not in files:
        return _read_tokenizer(path, files)
    return copy.deepcopy(_tokenizer_of_gguf(path, tuple(files.items()), _stamp(path, files)))


def _read_config(path: str, files: dict[str, Any]) -> PretrainedConfig:
    found: PretrainedConfig = AutoConfig.from_pretrained(path, **files)
    return found


def _read_tokenizer(path: str, files: dict[str, Any]) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **files)
    return found


def _stamp(path: str, files: dict[str, Any]) -> _Stamp:
    file = Path(path) / files["gguf_file"]
    if not file.is_file():
        return None
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4)
def _config_of_gguf(
    path: str,
    files: tuple[tuple[str, Any], ...],
    stamp: _Stamp,  # noqa: ARG001 - a file that changed is read again
) -> PretrainedConfig:
    return _read_config(path, dict(files))


@lru_cache(maxsize=4)
def _tokenizer_of_gguf(
    path: str,
    files: tuple[tuple[str, Any], ...],
    stamp: _Stamp,  # noqa: ARG001 - a file that changed is read again
) -> PreTrainedTokenizerBase:
    return _read_tokenizer(path, dict(files))
