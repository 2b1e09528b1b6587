"""Control directions: what is found where there is nothing to find."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stir_train.directions.advantages import Advantages
from stir_train.directions.estimate import (
    Estimate,
    estimate_directions,
    ordered_sum,
    permuted_weights,
)
from stir_train.types.directions import DirectionSet, RolloutGradients


def random_directions(directions: DirectionSet, *, seed: int) -> DirectionSet:
    """Random unit vectors at the same blocks and places; one seed is one draw."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(directions.directions.shape, generator=generator)
    return directions.with_directions(torch.nn.functional.normalize(noise, dim=-1))


def mean_differences(
    directions: DirectionSet, gradients: RolloutGradients, advantages: Advantages
) -> DirectionSet:
    """Unit vectors along differences of mean states, at the same blocks and places.

    Each rollout's mean state over the place is weighed by its advantage over the others of its problem that have
    a token there: with accuracy as the reward, right minus wrong, problem by problem. At the prompt's end the samples
    of a problem have one state, and so there is no difference: the vector is 0.
    """
    gradients = RolloutGradients.concatenate([gradients])
    worth = advantages.of(gradients.prompt_ids, gradients.samples)
    found = []
    for block, place in zip(directions.blocks.tolist(), directions.places, strict=True):
        if place == "prompt_end":
            found.append(torch.zeros(directions.directions.shape[1]))
            continue
        means = gradients.mean_states_at(block, place)
        weights = _balanced(gradients.prompt_ids, worth, means.any(dim=1).tolist())
        total = ordered_sum(torch.tensor(weights, dtype=torch.double), means)
        found.append(torch.nn.functional.normalize(total, dim=0).float())
    return directions.with_directions(torch.stack(found))


def _balanced(
    prompt_ids: Sequence[str], weights: Sequence[float], counts: Sequence[bool]
) -> list[float]:
    """Weights less their mean over the rollouts of the problem that count; of the others, 0."""
    of_problem: dict[str, list[float]] = {}
    for prompt_id, weight, is_counted in zip(prompt_ids, weights, counts, strict=True):
        if is_counted:
            of_problem.setdefault(prompt_id, []).append(weight)
    means = {prompt_id: sum(held) / len(held) for prompt_id, held in of_problem.items()}
    return [
        weight - means[prompt_id] if is_counted else 0.0
        for prompt_id, weight, is_counted in zip(prompt_ids, weights, counts, strict=True)
    ]


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
