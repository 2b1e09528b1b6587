"""Value heads between rounds of validation: fitted briefly, to choose what is tried next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.config.stages import ValueConfig
from stir_train.models.value_head import ValueHead
from stir_train.stores.interventions import InterventionData
from stir_train.types.steering import ControlBasis
from stir_train.value.examples import HeadData
from stir_train.value.fit import fit_value_head

PROVISIONAL_STEPS = 3
"""Heads between rounds are trained for one step in so many of the final head's."""


def fit_provisional(
    head_data: HeadData,
    data: InterventionData,
    basis: ControlBasis,
    config: ValueConfig,
    *,
    block: int,
    max_points: int,
    max_new_tokens: int,
    seed: int,
) -> ValueHead:
    """A block's head, from the trials so far, fitted by this process alone.

    Args:
        head_data: Takes the states that it lacks.
        data: The trials so far.
        basis: What they injected.
        config: Of the final head.
        block: The head's own.
        max_points: Control points told apart.
        max_new_tokens: Token budget.
        seed: Of the split, the weights and the order of examples.
    """
    for states in head_data.missing(data):
        head_data.states.write(states)
        head_data.states.add(states)
    train, held_out = head_data.split(
        data, basis, block, fraction=config.validation_fraction, seed=seed
    )
    head, _ = fit_value_head(
        train,
        held_out,
        config.model_copy(update={"num_steps": -(-config.num_steps // PROVISIONAL_STEPS)}),
        reads=head_data.reads(block),
        max_points=max_points,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    return head


def guide_of(
    heads: Mapping[int, ValueHead], captured: Sequence[int], *, token_price: float, doubt: float
) -> Callable[[int, int, Float[Tensor, "L D"], Float[Tensor, "E D"]], Float[Tensor, "E"]]:
    """Scores impulses at a state as a controller over the heads would.

    Args:
        heads: By block.
        captured: The blocks of the states that will be passed, ascending.
        token_price: What a whole token budget is worth in accuracy.
        doubt: Deviations between members' gains in P(correct) that are taken off a gain.

    Returns:
        (block, control point, state in every captured block, impulses) to a score an impulse.
    """

    def score(
        block: int, point: int, states: Float[Tensor, "L D"], impulses: Float[Tensor, "E D"]
    ) -> Float[Tensor, "E"]:
        rows = [captured.index(read) for read in heads[block].reads.tolist()]
        bound = heads[block].gain_bound(
            states[rows].flatten()[None],
            impulses[None],
            torch.tensor([point]),
            token_price=token_price,
            doubt=doubt,
        )
        return bound[0]

    return score
