"""Noise by counter: the draw for (seed, prompt, sample, position) depends on those alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

_INCREMENT = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MANTISSA_BITS = 53


def row_keys(seed: int, rows: Sequence[tuple[str, int]]) -> Int[Tensor, "B"]:
    """A 64-bit key per (prompt id, sample)."""
    digests = (hashlib.sha256(f"{seed}\0{pid}\0{k}".encode()).digest() for pid, k in rows)
    return torch.tensor([int.from_bytes(d[:8], "little", signed=True) for d in digests])


def uniforms(keys: Int[Tensor, "B"], positions: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """One double in [0, 1) per row: SplitMix64 of the key advanced by the position.

    Integer arithmetic only, so it is the same on every device.
    """
    x = keys + (positions + 1) * _signed(_INCREMENT)
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    x = x ^ _shift_right(x, 31)
    return _shift_right(x, 64 - _MANTISSA_BITS).double() * 2.0**-_MANTISSA_BITS


def _signed(constant: int) -> int:
    """The two's-complement reading of an unsigned 64-bit constant; torch integers wrap."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _shift_right(x: Int[Tensor, "B"], bits: int) -> Int[Tensor, "B"]:
    """Logical (not arithmetic) shift of 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
