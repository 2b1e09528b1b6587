"""From harvested contrasts to a control basis, one selection per captured block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.basis.dpp import KeysInMemory, Selection, greedy_select
from stir_train.config.stages import BasisConfig
from stir_train.errors import StageError
from stir_train.types.steering import Candidates, ControlBasis


@dataclass(frozen=True)
class BlockSelection:
    """The basis of one block and kind of contrast, and how its objective grew."""

    block: int
    saves_tokens: bool
    basis: ControlBasis
    selection: Selection


def select_basis(candidates: Candidates, config: BasisConfig, *, seed: int) -> list[BlockSelection]:
    """Select a basis for every captured block, of each kind of contrast by itself.

    Each contrast offers a correction (key: mean wrong state) and an anchor (key: mean right
    state); whichever is picked brings the other along.

    Raises:
        StageError: If there is no contrast to select from.
    """
    if not len(candidates):
        raise StageError(
            "the harvest found no control point with both right and wrong rollouts: the model "
            "always or never solves these problems. Use harder or easier problems, more samples "
            "(rollout.num_samples), or a higher rollout.temperature"
        )
    kinds = [candidates.saves_tokens == saves for saves in (False, True)]
    selections = []
    for layer, block in enumerate(candidates.blocks):
        entries = _entries(candidates, layer, block)
        for kind in kinds:
            if bool(kind.any()):
                part = entries.select(kind.repeat_interleave(2))
                selections.append(_select_block(part, config, block, seed))
    return selections


def _entries(candidates: Candidates, layer: int, block: int) -> ControlBasis:
    """Every contrast of a block as two entries: row ``2c`` the correction, ``2c + 1`` its anchor."""
    right, wrong = candidates.mean_right[:, layer], candidates.mean_wrong[:, layer]
    keys = torch.stack([wrong, right], 1).flatten(0, 1)
    directions = torch.stack([right - wrong, torch.zeros_like(right)], 1).flatten(0, 1)
    num_contrasts = len(candidates)
    return ControlBasis(
        keys=torch.nn.functional.normalize(keys, dim=-1),
        directions=directions,
        blocks=torch.full((2 * num_contrasts,), block),
        points=candidates.points.repeat_interleave(2),
        quality=candidates.quality.repeat_interleave(2),
        is_anchor=torch.tensor([False, True]).repeat(num_contrasts),
        saves_tokens=candidates.saves_tokens.repeat_interleave(2),
        contrast=torch.arange(num_contrasts).repeat_interleave(2),
    )


def _select_block(
    entries: ControlBasis, config: BasisConfig, block: int, seed: int
) -> BlockSelection:
    forced = _forced(entries.points, entries.quality, config.min_per_point)
    if config.selection == "greedy":
        quality = entries.quality
        diversity = config.diversity
    elif config.selection == "top":
        quality, diversity = entries.quality, 0.0
    else:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(entries) // 2, generator=generator)
        quality, diversity = order.repeat_interleave(2).float(), 0.0
    partner = [row ^ 1 for row in range(len(entries))]
    selection = greedy_select(
        KeysInMemory(entries.keys.double()),
        quality,
        config.size,
        diversity=diversity,
        jitter=config.jitter,
        forced=forced,
        partner=partner,
    )
    picks = torch.tensor(selection.picks)
    basis = entries.select(picks)
    return BlockSelection(block, bool(basis.saves_tokens.any()), basis, selection)


def _forced(points: Int[Tensor, "K"], quality: Float[Tensor, "K"], min_per_point: int) -> list[int]:
    """The best-quality entries of each control point, ``min_per_point`` of them, pairs whole."""
    forced: list[int] = []
    corrections = torch.arange(0, len(points), 2)
    for point in points.unique().tolist():
        rows = corrections[points[corrections] == point]
        order = quality[rows].argsort(descending=True, stable=True)
        forced += rows[order[: (min_per_point + 1) // 2]].tolist()
    return forced
