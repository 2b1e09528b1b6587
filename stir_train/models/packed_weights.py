"""Linear layers whose weights are laid out in advance as MKL multiplies by them, on CPUs in float32.

A plain product with few rows spends as long on bringing the weights into that order as on multiplying. Here it
is done once, for many products; the second copy of the weights is let go of afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

MIN_WEIGHTS = 1 << 18
"""Smaller layers stay in a core's cache, and gain nothing."""
PACKED_ROWS = 512
"""Rows for which MKL chooses the order; products of any other number of rows use the same one."""


def can_pack() -> bool:
    """Whether this torch multiplies with MKL and offers its order of weights."""
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[int]:
    """Multiply by packed copies of the model's large weights, which must not change meanwhile.

    Without gradients alone: where a graph is recorded, layers do as always. So do those that are small, not on
    a CPU, not in float32, of another class, or whose ``forward`` somebody else has replaced.

    Args:
        model: Any module; it is as before afterwards.

    Yields:
        How many layers are packed.
    """
    layers = [one for one in model.modules() if _is_packable(one)] if can_pack() else []
    try:
        for layer in layers:
            assert isinstance(layer, nn.Linear)
            vars(layer)["forward"] = _product(layer)  # before the class's, and gone afterwards
        yield len(layers)
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _is_packable(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32
    return fits and weight.numel() >= MIN_WEIGHTS


def _product(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    mkl: Any = torch.ops.mkl
    packed = mkl._mkl_reorder_linear_weight(weight, PACKED_ROWS)  # noqa: SLF001 - torch's compiler uses it

    def product(states: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        num_rows = states.shape[:-1].numel()
        if torch.is_grad_enabled() or not num_rows or states.dtype != torch.float32:
            return linear(states, layer.weight, layer.bias)
        made: Tensor = mkl._mkl_linear(states.contiguous(), packed, weight, bias, num_rows)  # noqa: SLF001
        return made

    return product
