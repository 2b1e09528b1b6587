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
from stir_train.models.output_head import OutputHead
from stir_train.types.rollout import Rollout
from stir_train.types.trajectory import CapturedStates, StateLabel


@dataclass(frozen=True)
class TeacherForced:
    """What one pass over rollouts says of them.

    Attributes:
        states: At their control points.
        logprobs: ``Float[T']`` each, nats, of the model's own distribution at temperature 1.
        excess_nats: ``Float[N]``, of each rollout the surprisal of its tokens at the temperature that was
            asked for, less the entropy there, summed: 0 on average of what the model itself samples, and
            below it under top-p or top-k.
        variances: ``Float[N]``, of each sum, if the model itself sampled it.
    """

    states: CapturedStates
    logprobs: tuple[Float[Tensor, " _"], ...]
    excess_nats: Float[Tensor, "N"]
    variances: Float[Tensor, "N"]


@torch.no_grad()
def teacher_force(
    loaded: LoadedModel,
    rollouts: Sequence[Rollout],
    blocks: Sequence[int],
    *,
    max_points: int,
    steering: Steering | None = None,
    temperature: float = 1.0,
) -> TeacherForced:
    """Feed prompts and completions in one right-padded batch; logits are made a few tokens at a time.

    Args:
        loaded: The frozen model.
        rollouts: Completions, each continued from its prompt alone.
        blocks: Blocks to read, ascending.
        max_points: Control points read per rollout.
        steering: The controllers that the rollouts were made under; they decide the same again.
        temperature: That surprisal and entropy are measured at.

    Raises:
        ArtifactError: If a rollout carries impulses and nobody says whose.
        ModelError: If the architecture changes logits after its output layer in an unknown way.
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
    hook, head = ControlHook(controllers_of(steering), blocks), OutputHead(loaded)
    with (
        hook.attached(loaded.blocks),
        hook.carrying_out(plan) as record,
        head.apart(num_through=1) as fed,
    ):
        logits = loaded.model(
            input_ids=token_ids.to(loaded.device),
            attention_mask=mask.to(loaded.device),
            use_cache=False,
        ).logits
    (hidden,) = fed
    head.require_equal(hidden, logits)
    found = [_token_nats(head, hidden[row], r, temperature) for row, r in enumerate(rollouts)]
    labels = _control_labels(rollouts, max_points)
    return TeacherForced(
        CapturedStates(tuple(labels), tuple(blocks), stack_states(record.states, blocks).cpu()),
        tuple(nats[0] for nats in found),
        torch.stack([nats[1].sum() for nats in found]),
        torch.stack([nats[2].sum() for nats in found]),
    )


def _token_nats(
    head: OutputHead, hidden: Float[Tensor, "T D"], rollout: Rollout, temperature: float
) -> Float[Tensor, "3 _"]:
    """Of each completion token: its log-probability, its excess surprisal, and the variance of that."""
    start = len(rollout.prompt_token_ids) - 1
    before = hidden[start : start + len(rollout.token_ids)]
    targets = torch.tensor(rollout.token_ids, device=hidden.device)
    parts = []
    for some, wanted in zip(
        before.split(head.rows_at_once), targets.split(head.rows_at_once), strict=True
    ):
        logits = head.logits(some)
        plain, scaled = logits.log_softmax(-1), (logits / temperature).log_softmax(-1)
        probabilities = scaled.exp()
        # A token of probability 0 adds nothing, however large its surprisal.
        surprisals = -scaled.masked_fill(probabilities == 0, 0.0)
        entropy = (probabilities * surprisals).sum(-1)
        variance = (probabilities * surprisals.square()).sum(-1) - entropy.square()
        at = wanted[:, None]
        excess = -scaled.gather(-1, at)[:, 0] - entropy
        parts.append(torch.stack([plain.gather(-1, at)[:, 0], excess, variance.clamp_min(0.0)]))
    return torch.cat(parts, dim=1).cpu()


def _control_labels(rollouts: Sequence[Rollout], max_points: int) -> list[StateLabel]:
    """Labels of every control point, in the order of the plan's sites."""
    return [
        StateLabel(rollout.prompt_id, rollout.sample, point, index, rollout.token_ids[index])
        for rollout in rollouts
        for point, index in enumerate(rollout.control_points[:max_points], start=1)
    ]
