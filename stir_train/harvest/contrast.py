"""Contrast the states of right and wrong rollouts at each control point, vectorised.

SPEC of the published method, section "harvest": at each (prompt, point) with both kinds,
``v = mean h(best right) - mean h(worst wrong)`` and ``quality`` is the difference of their rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.errors import ArtifactError
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import Candidates
from stir_train.types.trajectory import CapturedStates


def contrast_rollouts(
    rollouts: Sequence[GradedRollout],
    captured: CapturedStates,
    *,
    max_points: int,
    num_positive: int,
    num_negative: int,
    keep_truncated: bool,
) -> Candidates:
    """Build every contrast of one chunk of rollouts.

    Args:
        rollouts: All samples of some prompts.
        captured: Their states at control points.
        max_points: Points per rollout (M).
        num_positive: Best-rewarded right rollouts averaged.
        num_negative: Worst-rewarded wrong rollouts averaged.
        keep_truncated: Whether truncated rollouts count as wrong ones.

    Raises:
        ArtifactError: If a state belongs to none of the rollouts, or its token is not theirs.
    """
    _check_labels(rollouts, captured)
    prompt_ids = list(dict.fromkeys(graded.rollout.prompt_id for graded in rollouts))
    num_samples = 1 + max((graded.rollout.sample for graded in rollouts), default=0)
    row_of = {prompt_id: i for i, prompt_id in enumerate(prompt_ids)}
    num_prompts = len(prompt_ids)

    states = torch.zeros(num_prompts, num_samples, max_points, *captured.states.shape[1:])
    present = torch.zeros(num_prompts, num_samples, max_points, dtype=torch.bool)
    if captured.labels:
        where = torch.tensor(
            [(row_of[label.prompt_id], label.sample, label.point - 1) for label in captured.labels]
        )
        kept = where[:, 2] < max_points
        states[tuple(where[kept].T)] = captured.states[kept]
        present[tuple(where[kept].T)] = True

    rewards = torch.zeros(num_prompts, num_samples)
    right = torch.zeros(num_prompts, num_samples, dtype=torch.bool)
    wrong = torch.zeros(num_prompts, num_samples, dtype=torch.bool)
    for graded in rollouts:
        at = row_of[graded.rollout.prompt_id], graded.rollout.sample
        rewards[at] = graded.reward
        right[at] = graded.grade.correct
        wrong[at] = not graded.grade.correct and (keep_truncated or not graded.rollout.truncated)

    chosen_right = _best(rewards, present & right[:, :, None], num_positive)
    chosen_wrong = _best(-rewards, present & wrong[:, :, None], num_negative)
    mean_right, reward_right = _means(chosen_right, states, rewards)
    mean_wrong, reward_wrong = _means(chosen_wrong, states, rewards)
    quality = reward_right - reward_wrong
    valid = chosen_right.any(1) & chosen_wrong.any(1) & (quality > 0)
    prompt, point = valid.nonzero(as_tuple=True)
    return Candidates(
        prompt_ids=tuple(prompt_ids[i] for i in prompt.tolist()),
        points=point + 1,
        quality=quality[prompt, point],
        mean_right=mean_right[prompt, point],
        mean_wrong=mean_wrong[prompt, point],
        blocks=captured.blocks,
    )


def _best(
    scores: Float[Tensor, "P N"], eligible: Bool[Tensor, "P N M"], count: int
) -> Bool[Tensor, "P N M"]:
    """Mark the ``count`` best-scored eligible samples; ties go to the lower sample index."""
    masked = torch.where(eligible, scores[:, :, None], -torch.inf)
    order = masked.argsort(dim=1, descending=True, stable=True)
    rank: Int[Tensor, "P N M"] = order.argsort(dim=1)
    return eligible & (rank < count)


def _means(
    chosen: Bool[Tensor, "P N M"], states: Float[Tensor, "P N M L D"], rewards: Float[Tensor, "P N"]
) -> tuple[Float[Tensor, "P M L D"], Float[Tensor, "P M"]]:
    """Mean state and mean reward of the chosen samples; zeros where there is none."""
    weights = chosen.float() / chosen.sum(1, keepdim=True).clamp_min(1)
    return (
        torch.einsum("pnm,pnmld->pmld", weights, states),
        torch.einsum("pnm,pn->pm", weights, rewards),
    )


def _check_labels(rollouts: Sequence[GradedRollout], captured: CapturedStates) -> None:
    tokens = {(g.rollout.prompt_id, g.rollout.sample): g.rollout.token_ids for g in rollouts}
    for label in captured.labels:
        completion = tokens.get((label.prompt_id, label.sample))
        if completion is None:
            raise ArtifactError(
                f"a captured state names rollout ({label.prompt_id}, {label.sample}), "
                "which is not in this chunk; the trajectories and rollouts do not belong together"
            )
        if completion[label.token_index] != label.token_id:
            raise ArtifactError(
                f"rollout ({label.prompt_id}, {label.sample}), token {label.token_index}: the state "
                f"was captured at token id {label.token_id}, the rollout has "
                f"{completion[label.token_index]}"
            )
