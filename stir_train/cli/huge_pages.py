"""Large tensors in huge pages, where Linux gives them to those that ask."""

from __future__ import annotations

import os
from pathlib import Path

SETTING = "THP_MEM_ALLOC_ENABLE"
"""Of torch's allocator for CPUs, which reads it when it is first used."""
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask_for_huge_pages(kernel: Path = _KERNEL) -> None:
    """Have torch ask for them, unless the user has decided, or the kernel has none.

    Every batch allocates its activations anew, hundreds of megabytes, and the kernel hands them out 4 KiB at a time
    otherwise.
    """
    try:
        offered = kernel.read_text()
    except OSError:  # no such pages, or no Linux
        return
    if "[never]" not in offered:
        os.environ.setdefault(SETTING, "1")
