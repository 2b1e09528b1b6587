"""The prefix cache, told apart by what is added.

vLLM shares cache blocks between requests that begin with the same tokens. A block of which a token was
steered is another block: from the first such token on, its hash names the request whose it is. The
blocks before, as those of prompts that nobody steers, stay shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.core import kv_cache_utils

HASHING = "generate_block_hash_extra_keys"
STEERED_FROM, OWNER = "stir_train_steered_from", "stir_train_owner"
"""Keys of ``extra_args``: the first position that may be steered, or None; and whose its blocks are."""


@contextmanager
def keyed_blocks() -> Iterator[None]:
    """Tell steered blocks apart inside the context."""
    plain = getattr(kv_cache_utils, HASHING)

    def keyed(request: Any, start: int, end: int, multimodal: int) -> tuple[Any, int]:
        keys, multimodal = plain(request, start, end, multimodal)
        told = request.sampling_params.extra_args
        if told[STEERED_FROM] is not None and end > told[STEERED_FROM]:
            keys = (*(keys or ()), (OWNER, told[OWNER]))
        return keys, multimodal

    setattr(kv_cache_utils, HASHING, keyed)
    try:
        yield
    finally:
        setattr(kv_cache_utils, HASHING, plain)
