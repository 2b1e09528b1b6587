"""Figures that tell whether a harvest holds a usable contrast."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.types.reports import BlockDiagnostics, PointYield
from stir_train.types.steering import Contrasts, ControlBasis

WEAK_CONTRAST = 0.05
UNSTABLE_COSINE = 0.3


def diagnose(candidates: Contrasts, block: int) -> tuple[BlockDiagnostics, Float[Tensor, "C"]]:
    """What one block's contrasts look like, and the norm of each direction."""
    right, wrong = candidates.means(block)
    directions = right - wrong
    norms, right_norms = directions.norm(dim=-1), right.norm(dim=-1)
    del right
    keys = torch.nn.functional.normalize(wrong, dim=-1)
    raw_cosine = _mean_cosine(keys)
    del keys
    centred_cosine = _mean_cosine(torch.nn.functional.normalize(wrong - wrong.mean(0), dim=-1))
    del wrong
    units = torch.nn.functional.normalize(directions, dim=-1)
    common = torch.nn.functional.normalize(directions.mean(0), dim=0)
    found = BlockDiagnostics(
        block=block,
        relative_norm=float((norms / right_norms).median()),
        raw_cosine=raw_cosine,
        centred_cosine=centred_cosine,
        coherence=float((units @ common).mean()),
        split_half=_split_half(candidates, directions),
    )
    return found, norms


def warnings_of(candidates: Contrasts, blocks: list[BlockDiagnostics]) -> list[str]:
    """Warnings a user should read before trusting the basis."""
    found = []
    if len(candidates) < 2 * int(candidates.points.max()):
        found.append(
            f"only {len(candidates)} contrasts over {int(candidates.points.max())} control points"
        )
    for block in blocks:
        if block.relative_norm < WEAK_CONTRAST:
            found.append(
                f"block {block.block}: contrast is near zero (|v| is {block.relative_norm:.3f} "
                "of the state); right and wrong rollouts look alike there"
            )
        if block.split_half < UNSTABLE_COSINE:
            found.append(
                f"block {block.block}: mean directions of two halves of the prompts agree only to "
                f"cosine {block.split_half:.2f}; harvest more prompts, or expect little"
            )
    return found


def points_yield(candidates: Contrasts, basis: ControlBasis) -> list[PointYield]:
    """Contrasts found and corrections kept, per control point."""
    corrections = basis.points[~basis.is_anchor]
    num_blocks = len(candidates.blocks)
    return [
        PointYield(
            point,
            int((candidates.points == point).sum()),
            int((corrections == point).sum()) / num_blocks,
        )
        for point in candidates.points.unique().tolist()
    ]


def _mean_cosine(units: Float[Tensor, "C D"]) -> float:
    """Mean cosine over distinct pairs, from the norm of the sum."""
    count = len(units)
    if count < 2:
        return 1.0
    return float((units.sum(0).square().sum() - count) / (count * (count - 1)))


def _split_half(candidates: Contrasts, directions: Float[Tensor, "C D"]) -> float:
    half = torch.tensor([int(i, 16) % 2 for i in candidates.prompt_ids], dtype=torch.bool)
    cosines = []
    for point in candidates.points.unique().tolist():
        here = candidates.points == point
        if (here & half).any() and (here & ~half).any():
            one, two = directions[here & half].mean(0), directions[here & ~half].mean(0)
            cosines.append(float(torch.nn.functional.cosine_similarity(one, two, dim=0)))
    return sum(cosines) / len(cosines) if cosines else 0.0
