"""From harvested contrasts to a control basis, one selection per captured block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.basis.dpp import Selection, greedy_select
from stir_train.basis.shards import SharedEntries
from stir_train.config.stages import BasisConfig
from stir_train.distributed.world import World
from stir_train.errors import StageError
from stir_train.types.steering import Contrasts, ControlBasis


@dataclass(frozen=True)
class BlockSelection:
    """The basis of one block and kind of contrast, and how its objective grew."""

    block: int
    saves_tokens: bool
    basis: ControlBasis
    selection: Selection


def select_basis(
    shards: Sequence[Contrasts], config: BasisConfig, *, seed: int, world: World
) -> list[BlockSelection]:
    """Select a basis for every captured block, of each kind of contrast by itself. Collective.

    Each contrast offers a correction (key: mean wrong state) and an anchor (key: mean right
    state); whichever is picked brings the other along. Every rank passes all shards, reads the states
    of its share of them, a block and kind at a time, and gets the same basis, whatever the number of
    ranks.

    Reward gradients say what makes an answer right (at a price for tokens), so of entries that steer along
    them none comes from short against long.

    Raises:
        StageError: If there is no contrast to select from.
    """
    saves_tokens = torch.cat([shard.saves_tokens for shard in shards])
    kinds = (False, True) if config.directions == "difference" else (False,)
    if not any(bool((saves_tokens == saves).any()) for saves in kinds):
        raise StageError(
            "the harvest found no control point with both right and wrong rollouts: the model "
            "always or never solves these problems. Use harder or easier problems, more samples "
            "(rollout.num_samples), or a higher rollout.temperature"
        )
    selections = []
    for block in shards[0].blocks:
        for saves in kinds:
            if bool((saves_tokens == saves).any()):
                selections.append(_select_kind(shards, (block, saves), config, seed, world))
    return selections


def _select_kind(
    shards: Sequence[Contrasts],
    kind: tuple[int, bool],
    config: BasisConfig,
    seed: int,
    world: World,
) -> BlockSelection:
    """The basis of one block and kind, whose keys alone are in memory meanwhile."""
    block, saves_tokens = kind
    entries = SharedEntries(shards, block, saves_tokens=saves_tokens, world=world)
    selection = _select(entries, config, seed)
    basis = entries.basis(torch.tensor(selection.picks))
    return BlockSelection(block, saves_tokens, basis, selection)


def _select(entries: SharedEntries, config: BasisConfig, seed: int) -> Selection:
    forced = _forced(entries.points, entries.quality, config.min_per_point)
    quality, diversity = entries.quality, 0.0
    if config.selection == "greedy":
        diversity = config.diversity
    elif config.selection == "random":
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(entries.num_rows // 2, generator=generator)
        quality = order.repeat_interleave(2).float()
    return greedy_select(
        entries,
        quality,
        config.size,
        diversity=diversity,
        jitter=config.jitter,
        forced=forced,
        partner=[row ^ 1 for row in range(entries.num_rows)],
    )


def _forced(points: Int[Tensor, "K"], quality: Float[Tensor, "K"], min_per_point: int) -> list[int]:
    """The best-quality entries of each control point, ``min_per_point`` of them, pairs whole."""
    forced: list[int] = []
    corrections = torch.arange(0, len(points), 2)
    for point in points.unique().tolist():
        rows = corrections[points[corrections] == point]
        order = quality[rows].argsort(descending=True, stable=True)
        forced += rows[order[: (min_per_point + 1) // 2]].tolist()
    return forced
