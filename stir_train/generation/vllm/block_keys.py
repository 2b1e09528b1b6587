"""The prefix cache, told apart by what is added.

vLLM shares cache blocks between requests that begin with the same tokens. A block of which a token was
steered is another block: from the first such token on, its hash names whose it is. The blocks before,
as those of prompts that nobody steers, stay shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllm.v1.core import kv_cache_utils

HASHING = "generate_block_hash_extra_keys"
OWNER = "stir_train_owner"
"""Names our part in a block's hash."""


@dataclass(frozen=True)
class Steered:
    """From where on a request's blocks are not those of plain decoding.

    Attributes:
        first: Position of the first token that may be steered.
        owner: Whose the blocks are: requests of one owner share them.
    """

    first: int
    owner: int | str


@dataclass
class Hashing:
    """Whether vLLM has asked us about a block."""

    is_called: bool = False


@contextmanager
def keyed_blocks(steered: Callable[[Any], Steered | None]) -> Iterator[Hashing]:
    """Tell steered blocks apart inside the context.

    Args:
        steered: Of one of vLLM's requests; None if nobody steers it.
    """
    plain = getattr(kv_cache_utils, HASHING)
    hashing = Hashing()

    def keyed(request: Any, start: int, end: int, multimodal: int) -> tuple[Any, int]:
        hashing.is_called = True
        keys, multimodal = plain(request, start, end, multimodal)
        found = steered(request)
        if found is not None and end > found.first:
            keys = (*(keys or ()), (OWNER, found.owner))
        return keys, multimodal

    setattr(kv_cache_utils, HASHING, keyed)
    try:
        yield hashing
    finally:
        setattr(kv_cache_utils, HASHING, plain)
