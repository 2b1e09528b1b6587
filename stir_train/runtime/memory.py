"""Memory that is no longer used, given back before the next large thing is loaded."""

from __future__ import annotations

import ctypes
import gc

import torch


def return_freed_memory() -> None:
    """Collect what is unreachable, and give freed pages back to the system.

    Modules, hooks and engines refer to one another, so only the collector finds them. And glibc keeps freed blocks of
    up to 32 MiB for itself, whose gaps the next model does not fit into: a process that had sampled, trained and
    decoded in turn held twice what it used.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's alone
        libc.malloc_trim(0)
