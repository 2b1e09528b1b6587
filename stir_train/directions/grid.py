"""The vectors that tuning tries, from what the permutation test left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from stir_train.config.places import Place, estimated_at
from stir_train.config.steering import VectorAction, VectorSteering
from stir_train.types.reports import DirectionEstimate


def vector_grid(
    passing: Sequence[DirectionEstimate],
    norms: Mapping[Place, Sequence[float]],
    depth_of: Mapping[int, float],
) -> list[VectorSteering]:
    """Single vectors, then pairs at two places, each at the best block of its place.

    Args:
        passing: Rows that are more than noise, largest relative gain first.
        norms: By place, what to try, as shares of the typical norm of the states there; a place without a
            passing row is left out.
        depth_of: Depths by block.
    """
    singles: dict[Place, list[VectorAction]] = {}
    for place, shares in norms.items():
        best = next((row for row in passing if row.place == estimated_at(place)), None)
        if best is not None:
            depth = depth_of[best.block]
            singles[place] = [
                VectorAction(place=place, depth=depth, strength=_rounded(share * best.state_norm))
                for share in shares
            ]
    together = [
        (one, other)
        for first, second in combinations(singles, 2)
        for one in singles[first]
        for other in singles[second]
    ]
    alone = [(action,) for actions in singles.values() for action in actions]
    return [VectorSteering(actions=actions) for actions in [*alone, *together]]


def _rounded(norm: float) -> float:
    """To three digits, as people write it."""
    return float(f"{norm:.3g}")
