"""Memory is given back between stages."""

from __future__ import annotations

import ctypes
import gc
import weakref
from pathlib import Path

import pytest
import torch

from stir_train.runtime.memory import return_freed_memory

BLOCK, NUM_BLOCKS = 1 << 22, 64
"""4 MiB each: glibc keeps them once it has seen some freed."""


def _resident() -> int:
    """Bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def test_what_refers_to_itself_is_collected() -> None:
    class Node:
        def __init__(self) -> None:
            self.held, self.me = torch.ones(8), self

    gc.disable()
    try:
        seen = weakref.ref(Node())
        assert seen() is not None
        return_freed_memory()
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="glibc's",
)
def test_freed_blocks_go_back_to_the_system() -> None:
    held = [torch.ones(BLOCK // 4) for _ in range(NUM_BLOCKS)]
    for _ in range(2):  # the first freed blocks tell glibc to keep such sizes
        held = [torch.ones(BLOCK // 4) for _ in range(NUM_BLOCKS)]
    most = _resident()
    # Every other one stays, so that nothing at the heap's end can be cut off.
    held = held[::2]
    kept = _resident()
    return_freed_memory()
    left = _resident()
    half = BLOCK * NUM_BLOCKS // 2
    assert most - left > 0.8 * half, (most - kept, kept - left)
    assert all(block[-1] == 1 for block in held)
