"""Select a basis from contrasts spread over ranks; a program for `start_ranks`.

select_ranks.py OUTPUT.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stir_train.basis.select import select_basis
from stir_train.basis.shards import is_held
from stir_train.config.stages import BasisConfig
from stir_train.distributed.world import open_world
from stir_train.types.steering import Candidates, ControlBasis

NUM_SHARDS, WIDTH, BLOCKS = 7, 24, (2, 5)


class HeldElsewhere(Candidates):
    """Contrasts of which another rank reads the states."""

    def means(self, block: int, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fail."""
        raise AssertionError(f"states of block {block} are another rank's to read")


def shard(number: int) -> Candidates:
    """Made-up contrasts: as many as the shard's number, so that one shard is empty."""
    generator = torch.Generator().manual_seed(number)
    count = 5 * number
    return Candidates(
        prompt_ids=tuple(f"{number}-{i}" for i in range(count)),
        points=torch.randint(1, 4, (count,), generator=generator),
        quality=torch.rand(count, generator=generator),
        mean_right=torch.randn(count, len(BLOCKS), WIDTH, generator=generator),
        mean_wrong=torch.randn(count, len(BLOCKS), WIDTH, generator=generator),
        saves_tokens=torch.rand(count, generator=generator) < 0.3,
        blocks=BLOCKS,
    )


def main(output: Path) -> None:
    """Hold this rank's shards only, select with the others, save on rank 0."""
    torch.set_num_threads(1)
    with open_world() as world:
        shards = [shard(number) for number in range(NUM_SHARDS)]
        held = [
            one if is_held(number, world) else HeldElsewhere(**vars(one))
            for number, one in enumerate(shards)
        ]
        config = BasisConfig(size=40, min_per_point=4)
        parts = select_basis(held, config, seed=0, world=world)
        if world.is_main:
            save_file(vars(ControlBasis.concatenate([part.basis for part in parts])), output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
