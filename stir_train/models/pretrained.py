"""Read a model's config and tokenizer; of a GGUF file once a process.

Every reading of a GGUF file goes through its whole vocabulary string by string: half a minute for 150,000
tokens on a slow core, where a directory's takes a second.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from stir_train.models.locate import which_files

_Reader = Callable[[str, dict[str, Any]], Any]
_Stamp = tuple[int, int] | None
"""Time of change and size of a file at hand; None of a hub's, whose content its revision fixes."""


def read_config(path: str, settings: dict[str, Any]) -> PretrainedConfig:
    """The config of a model, the caller's own copy.

    Args:
        path: Directory or hub id.
        settings: Arguments of ``from_pretrained``; those that say which files are read count.
    """
    found: PretrainedConfig = _read(_read_config, path, which_files(settings))
    return found


def read_tokenizer(path: str, settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, the caller's own copy; arguments as of `read_config`."""
    found: PreTrainedTokenizerBase = _read(_read_tokenizer, path, which_files(settings))
    return found


def _read_config(path: str, files: dict[str, Any]) -> PretrainedConfig:
    found: PretrainedConfig = AutoConfig.from_pretrained(path, **files)
    return found


def _read_tokenizer(path: str, files: dict[str, Any]) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **files)
    return found


def _read(read: _Reader, path: str, files: dict[str, Any]) -> Any:
    """Read anew, or of a GGUF file a copy of what was read before."""
    if "gguf_file" not in files:
        return read(path, files)
    return copy.deepcopy(_read_once(read, path, tuple(files.items()), _stamp(path, files)))


def _stamp(path: str, files: dict[str, Any]) -> _Stamp:
    file = Path(path) / files["gguf_file"]
    if not file.is_file():
        return None
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _read_once(
    read: _Reader,
    path: str,
    files: tuple[tuple[str, Any], ...],
    stamp: _Stamp,  # noqa: ARG001 - a file that changed is read again
) -> Any:
    return read(path, dict(files))
