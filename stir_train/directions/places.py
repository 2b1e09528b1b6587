"""The tokens of each place in a rollout's fed columns.

Columns count from the prompt's last token, which is column 0; completion token ``t`` is column
``t + 1``. The last token of a completion is never fed, so nothing acts on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.types.directions import PLACES
from stir_train.types.places import Place
from stir_train.types.rollout import Rollout


@dataclass(frozen=True)
class Span:
    """A point and what follows it: columns ``start`` to ``end``, the latter excluded."""

    start: int
    end: int


def num_fed(rollout: Rollout) -> int:
    """Fed columns: the prompt's last token and every completion token but the last."""
    return len(rollout.token_ids)


def spans_of(rollout: Rollout, max_points: int) -> list[Span]:
    """The prompt's end, then at most ``max_points`` control points, each up to the next one."""
    fed = num_fed(rollout)
    starts = [0, *(index + 1 for index in rollout.control_points if index + 1 < fed)]
    spans = [Span(a, b) for a, b in zip(starts, [*starts[1:], fed], strict=True)]
    return spans[: max_points + 1]


def place_mask(
    rollouts: Sequence[Rollout], place: Place, *, max_points: int
) -> Float[Tensor, "B T"]:
    """1 at the columns of a place, 0 elsewhere; ``T`` is the longest rollout's.

    The rest of the prompt, where ``every_token`` acts too, has no columns.
    """
    mask = torch.zeros(len(rollouts), max(map(num_fed, rollouts)))
    for row, rollout in enumerate(rollouts):
        spans = spans_of(rollout, max_points)
        if place == "prompt_end":
            mask[row, 0] = 1
        elif place in ("everywhere", "every_token"):
            mask[row, : num_fed(rollout)] = 1
        else:
            for span in spans[1:]:
                mask[row, span.start : span.end if place == "segment" else span.start + 1] = 1
    return mask


def span_selector(
    rollouts: Sequence[Rollout], spans: Sequence[Sequence[Span]]
) -> Float[Tensor, "B Q T"]:
    """Sums over columns as a product: the whole rollout, then every point, then every segment.

    Row 0 adds up all fed columns, row ``1 + j`` is point ``j``, and row ``1 + J + j`` the segment from
    point ``j``, where ``J`` is the largest number of points in the batch.
    """
    most = max(map(len, spans))
    selector = torch.zeros(len(rollouts), 1 + 2 * most, max(map(num_fed, rollouts)))
    for row, rollout in enumerate(rollouts):
        selector[row, 0, : num_fed(rollout)] = 1
        for point, span in enumerate(spans[row]):
            selector[row, 1 + point, span.start] = 1
            selector[row, 1 + most + point, span.start : span.end] = 1
    return selector


def over_places(
    summed: Float[Tensor, "Q L D"], num_points: int, most: int
) -> Float[Tensor, "P L D"]:
    """A rollout's sums over places, from those of `span_selector`, where a batch has at ``most`` so many points."""
    sums = {
        "prompt_end": summed[1],
        "control_point": summed[2 : 1 + num_points].sum(0),
        "segment": summed[2 + most : 1 + most + num_points].sum(0),
        "everywhere": summed[0],
    }
    return torch.stack([sums[place] for place in PLACES])
