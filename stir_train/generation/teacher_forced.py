"""One pass over finished rollouts: states at their control points, and token log-probabilities.

For rollouts made elsewhere; during generation the engine captures at no extra pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.errors import ArtifactError
from stir_train.generation.control_hook import ControlHook, stack_states
from stir_train.generation.controller import Steering, controllers_of
from stir_train.generation.rollout_plan import plan_of
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Rollout
from stir_train.types.trajectory import CapturedStates, StateLabel


@dataclass(frozen=True)
class TeacherForced:
    """Captured states, and each rollout's token log-probabilities (nats)."""

    states: CapturedStates
    logprobs: tuple[Float[Tensor, " _"], ...]


@torch.no_grad()
def teacher_force(
    loaded: LoadedModel,
    rollouts: Sequence[Rollout],
    blocks: Sequence[int],
    *,
    max_points: int,
    steering: Steering | None = None,
) -> TeacherForced:
    """Feed prompts and completions in one right-padded batch.

    Args:
        loaded: The frozen model.
        rollouts: Completions, each continued from its prompt alone.
        blocks: Blocks to read, ascending.
        max_points: Control points read per rollout.
        steering: The controllers that the rollouts were made under; they decide the same again.

    Raises:
        ArtifactError: If a rollout carries impulses and nobody says whose.
    """
    if steering is None and any(rollout.impulses for rollout in rollouts):
        raise ArtifactError("steered rollouts cannot be read without replaying their impulses")
    sequences = [[*r.prompt_token_ids, *r.token_ids] for r in rollouts]
    width = max(map(len, sequences))
    token_ids = torch.zeros((len(rollouts), width), dtype=torch.long)
    mask = torch.zeros_like(token_ids)
    for row, ids in enumerate(sequences):
        token_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    plan = plan_of(rollouts, steering, max_points=max_points, device=loaded.device)
    hook = ControlHook(controllers_of(steering), blocks)
    with hook.attached(loaded.blocks), hook.carrying_out(plan) as record:
        logits = loaded.model(
            input_ids=token_ids.to(loaded.device),
            attention_mask=mask.to(loaded.device),
            use_cache=False,
        ).logits
    labels = _control_labels(rollouts, max_points)
    stacked = stack_states(record.states, blocks).cpu()
    logprobs = logits[:, :-1].float().log_softmax(-1).cpu()
    chosen = logprobs.gather(-1, token_ids[:, 1:, None])[..., 0]
    return TeacherForced(
        CapturedStates(tuple(labels), tuple(blocks), stacked),
        tuple(
            chosen[row, len(r.prompt_token_ids) - 1 : len(sequences[row]) - 1]
            for row, r in enumerate(rollouts)
        ),
    )


def _control_labels(rollouts: Sequence[Rollout], max_points: int) -> list[StateLabel]:
    """Labels of every control point, in the order of the plan's sites."""
    return [
        StateLabel(rollout.prompt_id, rollout.sample, point, index, rollout.token_ids[index])
        for rollout in rollouts
        for point, index in enumerate(rollout.control_points[:max_points], start=1)
    ]
