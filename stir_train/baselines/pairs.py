"""Completions of one problem beside one another: right with wrong, short with long."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from stir_train.baselines.interface import HarvestData, NotApplicable
from stir_train.types.rollout import GradedRollout, Rollout


def right_and_wrong(harvest: HarvestData) -> list[tuple[list[Rollout], list[Rollout]]]:
    """Of each problem with both, the right and the wrong completions.

    Raises:
        NotApplicable: If no problem has both.
    """
    pairs = []
    for group in harvest.by_prompt():
        right = [item.rollout for item in group if item.grade.correct]
        wrong = [item.rollout for item in group if not item.grade.correct]
        if right and wrong:
            pairs.append((right, wrong))
    if not pairs:
        raise NotApplicable("no problem has right and wrong completions")
    return pairs


def right_states(harvest: HarvestData) -> Bool[Tensor, "N"]:
    """Whether the completion that each captured state belongs to ended right.

    Raises:
        NotApplicable: If all did, or none.
    """
    right = {(g.rollout.prompt_id, g.rollout.sample): g.grade.correct for g in harvest.graded}
    labels = torch.tensor(
        [right[at.prompt_id, at.sample] for at in harvest.captured.labels], dtype=torch.bool
    )
    if bool(labels.all()) or not bool(labels.any()):
        raise NotApplicable("captured states are not of both right and wrong completions")
    return labels


def shortest_and_longest_right(harvest: HarvestData) -> list[tuple[Rollout, Rollout]]:
    """Of each problem with right completions of different lengths, the shortest and the longest.

    Raises:
        NotApplicable: If no problem has them.
    """
    pairs = []
    for group in harvest.by_prompt():
        right = sorted(
            (item.rollout for item in group if item.grade.correct),
            key=lambda rollout: (len(rollout.token_ids), rollout.sample),
        )
        if right and len(right[-1].token_ids) > len(right[0].token_ids):
            pairs.append((right[0], right[-1]))
    if not pairs:
        raise NotApplicable("no problem has right completions of different lengths")
    return pairs


def extremes_of_length(harvest: HarvestData, share: float) -> tuple[list[Rollout], list[Rollout]]:
    """The shortest and the longest completions of all, a share of them each."""
    items: list[GradedRollout] = [item for group in harvest.by_prompt() for item in group]
    ordered = sorted((item.rollout for item in items), key=lambda r: len(r.token_ids))
    count = max(1, round(share * len(ordered)))
    if not ordered or len(ordered[0].token_ids) == len(ordered[-1].token_ids):
        raise NotApplicable("all completions are of one length")
    return ordered[:count], ordered[-count:]
