"""Directions as weighted sums of rollout gradients, and tests of whether there is anything in them.

``G(block, place) = 1/N sum_i A_i g_i(block, place)`` is the gradient, at zero, of the sampled policy's
expected reward in a vector that is added at the place: the first-order gain along ``G / |G|`` per unit of
norm is ``|G|``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.directions.advantages import Advantages
from stir_train.errors import StageError
from stir_train.types.directions import PLACES, DirectionSet, RolloutGradients
from stir_train.types.places import Place
from stir_train.types.reports import DirectionEstimate

NUM_PERMUTATIONS = 200
NUM_SPLITS = 10


@dataclass(frozen=True)
class Estimate:
    """The table, the directions of its rows, and how much it rests on.

    Attributes:
        table: A row per block and place.
        directions: In the order of the table.
        num_rollouts: ``N``.
        num_used: Rollouts of problems with unequal rewards.
        num_problems: Those problems.
    """

    table: tuple[DirectionEstimate, ...]
    directions: DirectionSet
    num_rollouts: int
    num_used: int
    num_problems: int


def estimate_directions(
    gradients: RolloutGradients,
    advantages: Advantages,
    *,
    seed: int,
    places: Sequence[Place] = PLACES,
    num_permutations: int = NUM_PERMUTATIONS,
    num_splits: int = NUM_SPLITS,
) -> Estimate:
    """Sum up gradients by advantage for every block and place, and test the sums.

    Args:
        gradients: Of all rollouts that have an advantage; of others it does not matter.
        advantages: Of the same run.
        seed: Of permutations and splits.
        places: The rows of the table, with every block, and so what the p-values over all rows are over.
        num_permutations: At least 19 for a p-value of .05.
        num_splits: Ways of halving the problems.

    Raises:
        StageError: If no problem has unequal rewards, or gradients are missing.
    """
    gradients = RolloutGradients.concatenate([gradients])
    weights = _weights(gradients, advantages)
    permuted = permuted_weights(gradients.prompt_ids, weights, num_permutations, seed=seed)
    halves = _halves(gradients.prompt_ids, num_splits, seed=seed)
    pairs = [(block, place) for block in gradients.blocks for place in places]
    count = advantages.num_rollouts
    sums, norms, cosines = [], [], []
    for block, place in pairs:
        values = gradients.at(block, place)
        total = ordered_sum(weights, values)
        sums.append(total)
        norms.append(torch.cat([total.norm()[None], (permuted @ values.double()).norm(dim=1)]))
        cosines.append(_split_half_cosine(halves * weights, values.double(), total))
    gains = torch.stack(norms) / count
    typical = dict(
        zip(gradients.blocks, gradients.state_norms.median(0).values.tolist(), strict=True)
    )
    table = _table(pairs, gains, cosines, [typical[block] for block, _ in pairs])
    return Estimate(
        table=table,
        directions=_direction_set(table, torch.stack(sums)),
        num_rollouts=count,
        num_used=int((weights != 0).sum()),
        num_problems=len({p for p, _ in advantages.by_rollout}),
    )


def anything_to_steer(
    table: Sequence[DirectionEstimate], *, significance: float = 0.05
) -> list[DirectionEstimate]:
    """The rows to go on with, largest relative gain first; none means: abstain."""
    found = [row for row in table if row.passes(significance)]
    return sorted(found, key=lambda row: -row.relative_gain)


def ordered_sum(weights: Float[Tensor, "N"], values: Float[Tensor, "N D"]) -> Float[Tensor, "D"]:
    """``sum_i w_i v_i``, added one after another in double precision: the same bytes on any machine."""
    total = torch.zeros(values.shape[1], dtype=torch.double)
    for weight, value in zip(weights.tolist(), values, strict=True):
        if weight:
            total += weight * value.double()
    return total


def permuted_weights(
    prompt_ids: Sequence[str], weights: Float[Tensor, "N"], count: int, *, seed: int
) -> Float[Tensor, "K N"]:
    """Weights shuffled within problems, ``count`` times; equal prompt ids must stand together."""
    numbers = {prompt_id: number for number, prompt_id in enumerate(dict.fromkeys(prompt_ids))}
    problem = torch.tensor([numbers[prompt_id] for prompt_id in prompt_ids], dtype=torch.double)
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(count, len(prompt_ids), generator=generator, dtype=torch.double)
    return weights[(problem + keys).argsort(dim=1)]


def _weights(gradients: RolloutGradients, advantages: Advantages) -> Float[Tensor, "N"]:
    have = set(zip(gradients.prompt_ids, gradients.samples, strict=True))
    missing = [key for key, value in advantages.by_rollout.items() if value and key not in have]
    if missing:
        raise StageError(
            f"{len(missing)} rollouts of problems with unequal rewards have no gradients, the first "
            f"{missing[0]}"
        )
    values = advantages.of(gradients.prompt_ids, gradients.samples)
    weights = torch.tensor(values, dtype=torch.double)
    if not bool(weights.any()):
        raise StageError(
            "no problem has rollouts of unequal reward, so nothing says what to steer towards; sample "
            "more rollouts a problem, or choose harder or easier problems"
        )
    return weights


def _halves(prompt_ids: Sequence[str], count: int, *, seed: int) -> Float[Tensor, "S N"]:
    """1 for rollouts of one half of the problems, by hash; a row a split."""
    problems = list(dict.fromkeys(prompt_ids))
    rows = []
    for split in range(count):

        def key(problem: str, split: int = split) -> bytes:
            return hashlib.sha256(f"{seed}\0{split}\0{problem}".encode()).digest()

        half = set(sorted(problems, key=key)[: len(problems) // 2])
        rows.append([float(prompt_id in half) for prompt_id in prompt_ids])
    return torch.tensor(rows, dtype=torch.double).reshape(count, len(prompt_ids))


def _split_half_cosine(
    weights: Float[Tensor, "S N"], values: Float[Tensor, "N D"], total: Float[Tensor, "D"]
) -> float:
    one = weights @ values
    return float(torch.nn.functional.cosine_similarity(one, total - one, dim=1).mean())


def _table(
    pairs: Sequence[tuple[int, Place]],
    gains: Float[Tensor, "K P"],
    cosines: Sequence[float],
    state_norms: Sequence[float],
) -> tuple[DirectionEstimate, ...]:
    """``gains`` has a row per pair: observed first, then permuted."""
    centred = gains - gains.mean(1, keepdim=True)
    # Places that no rollout has are zero throughout, and stand out in nothing.
    deviations = centred / gains.std(1, keepdim=True).clamp_min(torch.finfo(gains.dtype).tiny)
    largest = deviations.amax(0)
    rows = []
    for (block, place), row, deviation, cosine, state_norm in zip(
        pairs, gains, deviations, cosines, state_norms, strict=True
    ):
        observed, permuted = row[0], row[1:]
        count = len(permuted)
        above = observed.square() - permuted.square().mean()
        rows.append(
            DirectionEstimate(
                block=block,
                place=place,
                gain=float(observed),
                gain_above_chance=float(above.clamp_min(0).sqrt()),
                split_half_cosine=cosine,
                permuted_mean=float(permuted.mean()),
                permuted_max=float(permuted.max()),
                p_value=(1 + int((permuted >= observed).sum())) / (1 + count),
                family_p_value=(1 + int((largest[1:] >= deviation[0]).sum())) / (1 + count),
                state_norm=state_norm,
            )
        )
    return tuple(rows)


def _direction_set(table: Sequence[DirectionEstimate], sums: Float[Tensor, "K D"]) -> DirectionSet:
    return DirectionSet(
        directions=torch.nn.functional.normalize(sums, dim=-1).float(),
        blocks=torch.tensor([row.block for row in table]),
        places=tuple(row.place for row in table),
        gains=torch.tensor([row.gain for row in table]),
        split_half_cosines=torch.tensor([row.split_half_cosine for row in table]),
        p_values=torch.tensor([row.family_p_value for row in table]),
    )
