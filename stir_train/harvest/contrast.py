"""Contrast the states of rollouts at each control point, vectorised.

Right against wrong is the published method (section "harvest"): at each (prompt, point) with both,
``v = mean h(best right) - mean h(worst wrong)`` and ``quality`` is the difference of their rewards.
Short against long is ours: among right rollouts alone, those that end soon after the point against
those that go on, with ``quality`` the share of tokens saved; it is what a model that wastes tokens
and is right anyway has to offer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    min_saving: float | None = None,
) -> Candidates:
    """Build every contrast of one chunk of rollouts, right against wrong first.

    Args:
        rollouts: All samples of some prompts.
        captured: Their states at control points.
        max_points: Points per rollout (M).
        num_positive: Best-rewarded right rollouts averaged.
        num_negative: Worst-rewarded wrong rollouts averaged.
        keep_truncated: Whether truncated rollouts count as wrong ones.
        min_saving: Least share of the remaining tokens that a short rollout must save over a long
            one; None contrasts right with wrong only.

    Raises:
        ArtifactError: If a state belongs to none of the rollouts, or its token is not theirs.
    """
    _check_labels(rollouts, captured)
    grid = _lay_out(rollouts, captured, max_points=max_points)
    right = torch.zeros(grid.present.shape[:2], dtype=torch.bool)
    wrong = torch.zeros_like(right)
    for graded, at in zip(rollouts, grid.places(rollouts), strict=True):
        right[at] = graded.grade.correct
        wrong[at] = not graded.grade.correct and (keep_truncated or not graded.rollout.truncated)
    eligible = grid.present & right[:, :, None]
    correctness = _contrast(
        grid.states,
        grid.rewards,
        _best(grid.rewards, eligible, num_positive),
        _best(-grid.rewards, grid.present & wrong[:, :, None], num_negative),
    )
    found = [_candidates(correctness, correctness.gap, 0.0, grid.prompt_ids, captured.blocks)]
    if min_saving is not None:
        left = grid.tokens_left
        shortness = _contrast(
            grid.states,
            -left,
            _best(-left, eligible, num_positive),
            _best(left, eligible, num_negative),
        )
        share = shortness.gap / (-shortness.worse).clamp_min(1)
        found.append(
            _candidates(
                shortness, share, min_saving, grid.prompt_ids, captured.blocks, saves_tokens=True
            )
        )
    return Candidates.concatenate(found)


@dataclass(frozen=True)
class _Grid:
    """A chunk laid out by prompt, sample and control point; zeros where a rollout has no such point.

    Attributes:
        prompt_ids: ``[P]``.
        states: ``Float[P N M L D]``.
        present: ``Bool[P N M]``, where there is a state.
        tokens_left: ``Float[P N M]``, tokens of the rollout after the point.
        rewards: ``Float[P N M]``, the rollout's, the same at each of its points.
    """

    prompt_ids: tuple[str, ...]
    states: Float[Tensor, "P N M L D"]
    present: Bool[Tensor, "P N M"]
    tokens_left: Float[Tensor, "P N M"]
    rewards: Float[Tensor, "P N M"]

    def places(self, rollouts: Sequence[GradedRollout]) -> list[tuple[int, int]]:
        """Prompt and sample of each rollout, as indices."""
        row_of = {prompt_id: row for row, prompt_id in enumerate(self.prompt_ids)}
        return [(row_of[item.rollout.prompt_id], item.rollout.sample) for item in rollouts]


def _lay_out(
    rollouts: Sequence[GradedRollout], captured: CapturedStates, *, max_points: int
) -> _Grid:
    prompt_ids = tuple(dict.fromkeys(graded.rollout.prompt_id for graded in rollouts))
    num_samples = 1 + max((graded.rollout.sample for graded in rollouts), default=0)
    shape = (len(prompt_ids), num_samples, max_points)
    rewards = torch.zeros(shape[:2])
    grid = _Grid(
        prompt_ids=prompt_ids,
        states=torch.zeros(*shape, *captured.states.shape[1:]),
        present=torch.zeros(shape, dtype=torch.bool),
        tokens_left=torch.zeros(shape),
        rewards=rewards[:, :, None].expand(shape),
    )
    totals = {}
    for graded, at in zip(rollouts, grid.places(rollouts), strict=True):
        rewards[at] = graded.reward
        totals[graded.rollout.prompt_id, graded.rollout.sample] = len(graded.rollout.token_ids)
    row_of = {prompt_id: row for row, prompt_id in enumerate(prompt_ids)}
    for row, label in enumerate(captured.labels):
        if label.point > max_points:
            continue
        at_point = row_of[label.prompt_id], label.sample, label.point - 1
        grid.states[at_point] = captured.states[row]
        grid.present[at_point] = True
        left = totals[label.prompt_id, label.sample] - label.token_index - 1
        grid.tokens_left[at_point] = left
    return grid


@dataclass(frozen=True)
class _Contrast:
    """Two groups of samples at every (prompt, point).

    Attributes:
        better_states, worse_states: ``Float[P M L D]``, mean states.
        gap: ``Float[P M]``, mean score of the better group minus that of the worse.
        worse: ``Float[P M]``, mean score of the worse group.
        valid: ``Bool[P M]``, where both groups have members.
    """

    better_states: Float[Tensor, "P M L D"]
    worse_states: Float[Tensor, "P M L D"]
    gap: Float[Tensor, "P M"]
    worse: Float[Tensor, "P M"]
    valid: Bool[Tensor, "P M"]


def _contrast(
    states: Float[Tensor, "P N M L D"],
    scores: Float[Tensor, "P N M"],
    better: Bool[Tensor, "P N M"],
    worse: Bool[Tensor, "P N M"],
) -> _Contrast:
    better_states, better_score = _means(better, states, scores)
    worse_states, worse_score = _means(worse, states, scores)
    return _Contrast(
        better_states=better_states,
        worse_states=worse_states,
        gap=better_score - worse_score,
        worse=worse_score,
        valid=better.any(1) & worse.any(1),
    )


def _candidates(
    contrast: _Contrast,
    quality: Float[Tensor, "P M"],
    least: float,
    prompt_ids: Sequence[str],
    blocks: tuple[int, ...],
    *,
    saves_tokens: bool = False,
) -> Candidates:
    prompt, point = (contrast.valid & (quality > least)).nonzero(as_tuple=True)
    return Candidates(
        prompt_ids=tuple(prompt_ids[i] for i in prompt.tolist()),
        points=point + 1,
        quality=quality[prompt, point],
        mean_right=contrast.better_states[prompt, point],
        mean_wrong=contrast.worse_states[prompt, point],
        saves_tokens=torch.full((len(prompt),), saves_tokens),
        blocks=blocks,
    )


def _best(
    scores: Float[Tensor, "P N M"], eligible: Bool[Tensor, "P N M"], count: int
) -> Bool[Tensor, "P N M"]:
    """Mark the ``count`` best-scored eligible samples; ties go to the lower sample index."""
    masked = torch.where(eligible, scores, -torch.inf)
    order = masked.argsort(dim=1, descending=True, stable=True)
    rank: Int[Tensor, "P N M"] = order.argsort(dim=1)
    return eligible & (rank < count)


def _means(
    chosen: Bool[Tensor, "P N M"],
    states: Float[Tensor, "P N M L D"],
    scores: Float[Tensor, "P N M"],
) -> tuple[Float[Tensor, "P M L D"], Float[Tensor, "P M"]]:
    """Mean state and mean score of the chosen samples; zeros where there is none."""
    weights = chosen.float() / chosen.sum(1, keepdim=True).clamp_min(1)
    return (
        torch.einsum("pnm,pnmld->pmld", weights, states),
        torch.einsum("pnm,pnm->pm", weights, scores),
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
