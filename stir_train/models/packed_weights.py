"""Linear layers whose weights are laid out in advance as MKL multiplies by them, on CPUs.

A plain product with few rows spends as long on bringing the weights into that order as on multiplying. Here it
is done once, for many products; the second copy of the weights is let go of afterwards.

In bfloat16 the copy is in float32, which a CPU without matrix units multiplies nearly twice as fast. That loses
no accuracy: such a CPU's own bfloat16 product also multiplies exactly, adds in float32, in another order, and
rounds the sum once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

MIN_WEIGHTS = 1 << 16
"""Smaller layers stay in a core's cache, and gain nothing."""
COPY_BYTES, MEMORY_SHARE = 4, 0.25
"""Of a packed weight; and of the machine's memory, what the copies may take: not of what is free just now, so that
the same run makes the same bytes."""
PACKED_ROWS = 512
"""Rows for which MKL chooses the order; products of any other number of rows use the same one."""


def can_pack() -> bool:
    """Whether this torch multiplies with MKL and offers its order of weights."""
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def has_matrix_units() -> bool:
    """Whether this CPU multiplies bfloat16 by units of its own (AMX), faster than float32 by any order."""
    return torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - torch's compiler asks it


def total_memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[int]:
    """Multiply by packed copies of the model's large weights, which must not change meanwhile.

    Without gradients alone: where a graph is recorded, layers do as always. So do those that are small, not on
    a CPU, neither in float32 nor in bfloat16 on a CPU without matrix units, of another class, or whose
    ``forward`` somebody else has replaced; and all of them, where the copies would take more than a quarter of the
    machine's memory.

    Args:
        model: Any module; it is as before afterwards.

    Yields:
        How many layers are packed.
    """
    found = [one for one in model.modules() if isinstance(one, nn.Linear) and _is_packable(one)]
    layers = found if can_pack() else []
    if sum(COPY_BYTES * layer.weight.numel() for layer in layers) > MEMORY_SHARE * total_memory():
        layers = []
    try:
        for layer in layers:
            vars(layer)["forward"] = _product(layer)  # before the class's, and gone afterwards
        yield len(layers)
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _is_packable(module: nn.Linear) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    is_faster = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and not has_matrix_units()
    )
    return weight.device.type == "cpu" and is_faster and weight.numel() >= MIN_WEIGHTS


def _product(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    dtype, bias = layer.weight.dtype, None if layer.bias is None else layer.bias.detach().float()
    mkl: Any = torch.ops.mkl
    packed = mkl._mkl_reorder_linear_weight(layer.weight.detach().float(), PACKED_ROWS)  # noqa: SLF001 - torch's compiler uses it
    # Of the weights in their own order only the shape is asked, since as many rows come as are named.
    shape = torch.full((1,), math.nan).expand(layer.weight.shape)

    def product(states: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        num_rows = states.shape[:-1].numel()
        if torch.is_grad_enabled() or not num_rows or states.dtype != dtype:
            return linear(states, layer.weight, layer.bias)
        fed = states.float().contiguous()
        made: Tensor = mkl._mkl_linear(fed, packed, shape, bias, num_rows)  # noqa: SLF001
        return made.to(dtype)

    return product
