"""Differentiate rollouts with a model that ranks hold together; a program for `start_ranks`.

gradient_ranks.py OUTPUT.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from stir_train.config.inputs import ModelConfig
from stir_train.directions.gradients import GradientSettings, rollout_gradients
from stir_train.distributed.world import open_world
from stir_train.generation.backend import SamplingParams
from stir_train.models.load import load_model
from stir_train.types.rollout import Rollout

MODEL = "embedded/addition"
SETTINGS = GradientSettings((1, 3), SamplingParams(99, temperature=0.7), 8)


def rollouts() -> list[Rollout]:
    """Made-up tokens of a few lengths."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 40, (count,), generator=generator).tolist())

    return [Rollout(f"p{n}", 0, ids(9), ids(n), (), (n // 3,), "stop") for n in (5, 12, 30)]


def main(output: Path) -> None:
    """Every rank runs the same rollouts; rank 0 saves."""
    torch.set_num_threads(1)
    with open_world() as world:
        config = ModelConfig(name=MODEL, device="cpu", sharding="tensor", shards=world.size)
        found, _ = rollout_gradients(load_model(config, world), rollouts(), SETTINGS)
        if world.is_main:
            save_file({"sums": found.sums}, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
