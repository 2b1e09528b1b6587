"""What one teacher-forced pass over finished rollouts does: read, ask or replay at their control points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.generation.control_hook import (
    Ask,
    Edits,
    PassPlan,
    Sites,
    asks_at_points,
    asks_at_prompt,
)
from stir_train.generation.controller import ControlBatch, Steering, controllers_of
from stir_train.types.places import PROMPT_END, tokens_of
from stir_train.types.rollout import Impulse, Rollout


def control_sites(rollouts: Sequence[Rollout], *, max_points: int | None = None) -> Sites:
    """Every control point of rollouts in rows of a right-padded batch, or the first few of each."""
    found = [
        (row, rollout, point, index)
        for row, rollout in enumerate(rollouts)
        for point, index in enumerate(rollout.control_points[:max_points], start=1)
    ]
    return Sites(
        torch.tensor([row for row, _, _, _ in found], dtype=torch.long),
        torch.tensor([len(r.prompt_token_ids) + index for _, r, _, index in found]).long(),
        ControlBatch(
            prompt_ids=tuple(rollout.prompt_id for _, rollout, _, _ in found),
            samples=tuple(rollout.sample for _, rollout, _, _ in found),
            points=torch.tensor([point for _, _, point, _ in found], dtype=torch.long),
            token_indices=tuple(index for _, _, _, index in found),
        ),
    )


def asks_again(
    rollouts: Sequence[Rollout], steering: Steering, *, max_points: int, device: torch.device
) -> tuple[Ask, ...]:
    """Ask controllers in one pass what they would decide, or have decided, along rollouts.

    A block's own states do not depend on what is added in it, and those above see it in the same pass.
    """
    points = control_sites(rollouts, max_points=max_points)
    until = [
        len(rollout.prompt_token_ids)
        + tokens_of(
            "segment",
            index,
            rollout.control_points,
            num_prompt_tokens=len(rollout.prompt_token_ids),
            last=_last_fed(rollout),
        )[1]
        for rollout in rollouts
        for index in rollout.control_points[:max_points]
    ]
    starts = torch.tensor([len(rollout.prompt_token_ids) - 1 for rollout in rollouts])
    prompt_ends = Sites(
        torch.arange(len(rollouts)),
        starts,
        ControlBatch(
            prompt_ids=tuple(rollout.prompt_id for rollout in rollouts),
            samples=tuple(rollout.sample for rollout in rollouts),
            points=torch.zeros(len(rollouts), dtype=torch.long),
            token_indices=(PROMPT_END,) * len(rollouts),
        ),
    )
    last = torch.tensor([len(r.prompt_token_ids) + _last_fed(r) for r in rollouts])
    controllers = controllers_of(steering)
    asks = asks_at_prompt(controllers, _on(prompt_ends, device), last.to(device))
    if not len(points.rows):
        return asks
    until_columns = torch.tensor(until, device=device)
    return (*asks, *asks_at_points(controllers, _on(points, device), until_columns))


def recorded_edits(
    rollouts: Sequence[Rollout], delta_of: Callable[[Impulse], Float[Tensor, "D"]]
) -> tuple[Edits, ...]:
    """Add again what was added, one `Edits` a block; ``delta_of`` gives an impulse's vector."""
    places: dict[int, list[tuple[int, int]]] = {}
    deltas: dict[int, list[Tensor]] = {}
    for row, rollout in enumerate(rollouts):
        start = len(rollout.prompt_token_ids)
        for impulse in rollout.impulses:
            first, last = tokens_of(
                impulse.place,
                impulse.token_index,
                rollout.control_points,
                num_prompt_tokens=start,
                last=_last_fed(rollout),
            )
            cells = [(row, start + index) for index in range(first, last + 1)]
            places.setdefault(impulse.block, []).extend(cells)
            deltas.setdefault(impulse.block, []).extend([delta_of(impulse)] * len(cells))
    return tuple(
        Edits(
            block,
            torch.tensor([row for row, _ in cells]),
            torch.tensor([column for _, column in cells]),
            torch.stack(deltas[block]),
        )
        for block, cells in places.items()
    )


def plan_of(
    rollouts: Sequence[Rollout], steering: Steering | None, *, max_points: int, device: torch.device
) -> PassPlan:
    """Capture at control points, under the controllers that the rollouts were made under."""
    asks: tuple[Ask, ...] = ()
    if steering is not None:
        asks = asks_again(rollouts, steering, max_points=max_points, device=device)
    return PassPlan(_on(control_sites(rollouts, max_points=max_points), device), asks)


def _last_fed(rollout: Rollout) -> int:
    """Token index of the last token that decoding fed: the one before the last."""
    return len(rollout.token_ids) - 2


def _on(sites: Sites, device: torch.device) -> Sites:
    batch = sites.batch
    moved = ControlBatch(
        batch.prompt_ids, batch.samples, batch.points.to(device), batch.token_indices
    )
    return Sites(sites.rows.to(device), sites.columns.to(device), moved)
