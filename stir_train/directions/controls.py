"""Control directions: what is found where there is nothing to find."""

from __future__ import annotations

import torch

from stir_train.directions.advantages import Advantages
from stir_train.directions.estimate import Estimate, estimate_directions, permuted_weights
from stir_train.types.directions import DirectionSet, RolloutGradients


def random_directions(directions: DirectionSet, *, seed: int) -> DirectionSet:
    """Random unit vectors at the same blocks and places; one seed is one draw."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(directions.directions.shape, generator=generator)
    return directions.with_directions(torch.nn.functional.normalize(noise, dim=-1))


def permuted_directions(
    gradients: RolloutGradients, advantages: Advantages, *, seed: int
) -> Estimate:
    """The whole estimate with advantages that were shuffled within problems, and so say nothing."""
    gradients = RolloutGradients.concatenate([gradients])
    keys = list(zip(gradients.prompt_ids, gradients.samples, strict=True))
    weights = torch.tensor(advantages.of(gradients.prompt_ids, gradients.samples)).double()
    shuffled = permuted_weights(gradients.prompt_ids, weights, 1, seed=seed)[0].tolist()
    by_rollout = {k: v for k, v in zip(keys, shuffled, strict=True) if k in advantages.by_rollout}
    return estimate_directions(
        gradients, Advantages(by_rollout, advantages.num_rollouts), seed=seed
    )
