"""Control conditions: bases that keep everything but the one thing a claim rests on."""

from __future__ import annotations

import dataclasses

import torch

from stir_train.types.steering import ControlBasis


def random_directions(basis: ControlBasis, *, seed: int) -> ControlBasis:
    """Replace every direction by a random one of the same norm."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(basis.directions.shape, generator=generator)
    norms = basis.directions.norm(dim=-1, keepdim=True)
    unit = torch.nn.functional.normalize(noise, dim=-1)
    return dataclasses.replace(basis, directions=unit * norms)


def shuffled_keys(basis: ControlBasis, *, seed: int) -> ControlBasis:
    """Give every entry the key of another entry of the same block and point."""
    generator = torch.Generator().manual_seed(seed)
    keys = basis.keys.clone()
    for block in basis.blocks.unique().tolist():
        for point in basis.points.unique().tolist():
            rows = ((basis.blocks == block) & (basis.points == point)).nonzero()[:, 0]
            keys[rows] = basis.keys[rows[torch.randperm(len(rows), generator=generator)]]
    return dataclasses.replace(basis, keys=keys)


def empty_basis(basis: ControlBasis) -> ControlBasis:
    """No entries: steering with it must equal plain decoding bit for bit."""
    return basis.select(torch.zeros(0, dtype=torch.long))
