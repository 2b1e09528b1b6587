"""Where a rollout can be acted on, gradients of its log-probability there, and directions made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.types.places import Place
from stir_train.types.trajectory import StateLabel

PLACES: tuple[Place, ...] = ("prompt_end", "control_point", "segment", "everywhere")
"""The places at which gradients are summed. Of ``every_token`` there is none: it would take a backward
pass through the whole prompt, which all samples share."""


@dataclass(frozen=True)
class PlacedVector:
    """A vector that is added to a block's output at every token of a place."""

    block: int
    place: Place
    vector: Float[Tensor, "D"]


@dataclass(frozen=True)
class PointGradients:
    """States and gradients at single points, for directions of some states only.

    Attributes:
        labels: ``[R]``; point 0 with token index -1 is the prompt's end, others are control points.
        states: ``Float[R L D]``, the blocks' outputs at the point.
        at_point: ``Float[R L D]``, ``d log p / d h`` there.
        over_segment: ``Float[R L D]``, the same summed from the point up to the next one.
    """

    labels: tuple[StateLabel, ...]
    states: Float[Tensor, "R L D"]
    at_point: Float[Tensor, "R L D"]
    over_segment: Float[Tensor, "R L D"]


@dataclass(frozen=True)
class RolloutGradients:
    """The score of recorded rollouts: gradients of their log-probability, summed over places.

    Attributes:
        prompt_ids, samples: ``[N]``, which rollouts.
        blocks: The ``L`` differentiated blocks, ascending.
        logprobs: ``Float[N]`` nats, of the whole completion under the sampled distribution.
        sums: ``Float[N P L D]`` float32, ``P`` in the order of `PLACES`.
        state_norms: ``Float[N L]``, mean norm of the block's outputs at prompt end and control points.
        state_means: ``Float[N P L D]`` float32, mean output of the block over each place; 0 where a rollout has
            no token of the place.
        points: The single terms, where they were kept; grouped by rollout in the order of ``sums``.
    """

    prompt_ids: tuple[str, ...]
    samples: tuple[int, ...]
    blocks: tuple[int, ...]
    logprobs: Float[Tensor, "N"]
    sums: Float[Tensor, "N P L D"]
    state_norms: Float[Tensor, "N L"]
    state_means: Float[Tensor, "N P L D"]
    points: PointGradients | None = None

    def __post_init__(self) -> None:
        """Check that labels and gradients agree.

        Raises:
            ValueError: If they do not.
        """
        expected = (len(self.prompt_ids), len(PLACES), len(self.blocks))
        agrees = self.sums.shape[:3] == expected and self.state_means.shape == self.sums.shape
        if not agrees or len(self.samples) != len(self.prompt_ids):
            raise ValueError(
                f"gradients have shape {tuple(self.sums.shape)}; rollouts, places and blocks say "
                f"{expected}"
            )

    def __len__(self) -> int:
        """Number of rollouts."""
        return len(self.prompt_ids)

    def at(self, block: int, place: Place) -> Float[Tensor, "N D"]:
        """One block's gradients, summed over one place.

        Raises:
            ValueError: If the block was not differentiated.
        """
        return self._at(self.sums, block, place)

    def mean_states_at(self, block: int, place: Place) -> Float[Tensor, "N D"]:
        """One block's mean output over one place.

        Raises:
            ValueError: If the block was not differentiated.
        """
        return self._at(self.state_means, block, place)

    def _at(self, held: Float[Tensor, "N P L D"], block: int, place: Place) -> Float[Tensor, "N D"]:
        if block not in self.blocks:
            raise ValueError(f"block {block} has no gradients; those that do: {self.blocks}")
        return held[:, PLACES.index(place), self.blocks.index(block)]

    @staticmethod
    def concatenate(parts: Sequence[RolloutGradients]) -> RolloutGradients:
        """Join gradients of the same blocks in the order of (prompt, sample), however they were cut.

        Whatever is computed from the result is so the same for any chunks in any order.
        """
        keys = [key for part in parts for key in zip(part.prompt_ids, part.samples, strict=True)]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        index = torch.tensor(order, dtype=torch.long)
        points = [part.points for part in parts if part.points is not None]
        return RolloutGradients(
            prompt_ids=tuple(keys[i][0] for i in order),
            samples=tuple(keys[i][1] for i in order),
            blocks=parts[0].blocks,
            logprobs=torch.cat([part.logprobs for part in parts])[index],
            sums=torch.cat([part.sums for part in parts])[index],
            state_norms=torch.cat([part.state_norms for part in parts])[index],
            state_means=torch.cat([part.state_means for part in parts])[index],
            points=_join(points) if len(points) == len(parts) else None,
        )


def _join(parts: Sequence[PointGradients]) -> PointGradients:
    labels = [label for part in parts for label in part.labels]

    def key(row: int) -> tuple[str, int, int]:
        return labels[row].prompt_id, labels[row].sample, labels[row].point

    order = sorted(range(len(labels)), key=key)
    index = torch.tensor(order, dtype=torch.long)
    return PointGradients(
        labels=tuple(labels[i] for i in order),
        states=torch.cat([part.states for part in parts])[index],
        at_point=torch.cat([part.at_point for part in parts])[index],
        over_segment=torch.cat([part.over_segment for part in parts])[index],
    )


@dataclass(frozen=True)
class DirectionSet:
    """Unit vectors to add at places, and how much there is to be said for each.

    Attributes:
        directions: ``Float[K D]``, unit norm.
        blocks: ``Int[K]``, 0-based.
        places: ``[K]``.
        gains: ``Float[K]``, first-order gain of expected reward per unit of norm, noise included; 0
            where none was estimated.
        split_half_cosines: ``Float[K]``, between directions of disjoint halves of the problems.
        p_values: ``Float[K]``, of the permutation test over all blocks and places together.
    """

    directions: Float[Tensor, "K D"]
    blocks: Int[Tensor, "K"]
    places: tuple[Place, ...]
    gains: Float[Tensor, "K"]
    split_half_cosines: Float[Tensor, "K"]
    p_values: Float[Tensor, "K"]

    def __len__(self) -> int:
        """Number of directions."""
        return len(self.places)

    def vector(self, block: int, place: Place) -> Float[Tensor, "D"]:
        """The unit vector of a block and place.

        Raises:
            ValueError: If there is none, or several.
        """
        pairs = list(zip(self.blocks.tolist(), self.places, strict=True))
        if pairs.count((block, place)) != 1:
            raise ValueError(f"{pairs.count((block, place))} directions for block {block}, {place}")
        return self.directions[pairs.index((block, place))]

    def with_directions(self, directions: Float[Tensor, "K D"]) -> DirectionSet:
        """Other vectors at the same places, of which nothing has been estimated."""
        nothing = torch.zeros(len(self))
        return dataclasses.replace(
            self,
            directions=directions,
            gains=nothing,
            split_half_cosines=nothing,
            p_values=torch.ones(len(self)),
        )
