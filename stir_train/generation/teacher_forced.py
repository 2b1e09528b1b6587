"""One pass over finished rollouts: states at their control points, and token log-probabilities.

For rollouts made elsewhere; during generation the engine captures at no extra pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.errors import ArtifactError
from stir_train.models.hooks import block_hooks
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
    loaded: LoadedModel, rollouts: Sequence[Rollout], blocks: Sequence[int], *, max_points: int
) -> TeacherForced:
    """Feed prompts and completions in one right-padded batch.

    Args:
        loaded: The frozen model.
        rollouts: Completions without impulses.
        blocks: Blocks to read, ascending.
        max_points: Control points read per rollout.

    Raises:
        ArtifactError: If a rollout carries impulses, whose states this pass would not reproduce.
    """
    if any(rollout.impulses for rollout in rollouts):
        raise ArtifactError("steered rollouts cannot be read without replaying their impulses")
    sequences = [[*r.prompt_token_ids, *r.token_ids] for r in rollouts]
    width = max(map(len, sequences))
    token_ids = torch.zeros((len(rollouts), width), dtype=torch.long)
    mask = torch.zeros_like(token_ids)
    for row, ids in enumerate(sequences):
        token_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    seen: dict[int, Tensor] = {}
    with block_hooks(loaded.blocks, {block: _keep(seen, block) for block in blocks}):
        logits = loaded.model(
            input_ids=token_ids.to(loaded.device),
            attention_mask=mask.to(loaded.device),
            use_cache=False,
        ).logits
    labels, rows, columns = _control_labels(rollouts, max_points)
    stacked = torch.stack([seen[block][rows, columns].float().cpu() for block in blocks], dim=1)
    logprobs = logits[:, :-1].float().log_softmax(-1).cpu()
    chosen = logprobs.gather(-1, token_ids[:, 1:, None])[..., 0]
    return TeacherForced(
        CapturedStates(tuple(labels), tuple(blocks), stacked),
        tuple(
            chosen[row, len(r.prompt_token_ids) - 1 : len(sequences[row]) - 1]
            for row, r in enumerate(rollouts)
        ),
    )


def _keep(seen: dict[int, Tensor], block: int) -> Callable[[Tensor], None]:
    def keep(states: Tensor) -> None:
        seen[block] = states

    return keep


def _control_labels(
    rollouts: Sequence[Rollout], max_points: int
) -> tuple[list[StateLabel], list[int], list[int]]:
    """Labels of every control point, with its row and column in the batch."""
    labels, rows, columns = [], [], []
    for row, rollout in enumerate(rollouts):
        for point, index in enumerate(rollout.control_points[:max_points], start=1):
            token = rollout.token_ids[index]
            labels.append(StateLabel(rollout.prompt_id, rollout.sample, point, index, token))
            rows.append(row)
            columns.append(len(rollout.prompt_token_ids) + index)
    return labels, rows, columns
