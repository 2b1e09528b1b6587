"""Read and edit the residual stream after chosen blocks; every hook is removed on exit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

BlockEdit = Callable[[Float[Tensor, "B T D"]], Float[Tensor, "B T D"] | None]
"""Sees the state after a block; returns a replacement, or None to leave it."""


@contextmanager
def block_hooks(blocks: nn.ModuleList, edits: Mapping[int, BlockEdit]) -> Iterator[None]:
    """Call ``edits[b]`` on the output of block ``b`` in every forward pass inside the context.

    Blocks below an edited one are untouched, and compute bitwise the same.

    Args:
        blocks: The model's decoder blocks.
        edits: One function per 0-based block index.
    """
    handles = []
    try:
        for index, edit in edits.items():
            handles.append(blocks[index].register_forward_hook(_as_forward_hook(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _as_forward_hook(edit: BlockEdit) -> Callable[[nn.Module, Any, Any], Any]:
    """Adapt an edit to blocks that return a tensor and to those that return a tuple."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        edited = edit(states)
        if edited is None:
            return None
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    return hook
