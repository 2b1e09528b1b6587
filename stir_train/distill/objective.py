"""Distillation losses: the teacher's tokens, its distributions, its states."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from stir_train.config.learning import ObjectiveConfig
from stir_train.distill.samples import IGNORED, SequenceBatch
from stir_train.generation.control_hook import ControlHook
from stir_train.models.hooks import block_hooks
from stir_train.models.lora import Student


@dataclass(frozen=True)
class DistillLoss:
    """The weighted objectives of one part of a batch, by name; the loss is their sum.

    Each is a sum over this part's tokens (or control points) divided by those of the whole batch:
    parts and ranks add up to the batch's mean.

    Attributes:
        module: What is called: the student, or the training engine around it.
        student: The student inside, whose adapter can be switched off.
        objective: Weights.
    """

    module: nn.Module
    student: Student
    objective: ObjectiveConfig

    def __call__(self, batch: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """``sequence`` and ``divergence`` in nats, ``states`` relative; those with a weight."""
        objective = self.objective
        target_logits, target_states = (
            self._teach(batch) if objective.needs_teacher else (None, None)
        )
        logits, states = self._run(batch, steered=False)
        labels = batch.labels[:, 1:].to(logits.device)
        counted = labels != IGNORED
        terms: dict[str, Tensor] = {}
        if objective.sequence and not batch.by_student:
            terms["sequence"] = (
                objective.sequence
                * functional.cross_entropy(
                    logits[:, :-1].float().flatten(0, 1),
                    labels.flatten(),
                    ignore_index=IGNORED,
                    reduction="sum",
                )
                / batch.num_targets
            )
        if objective.logits:
            assert target_logits is not None
            terms["divergence"] = (
                objective.logits
                * divergence(logits[:, :-1], target_logits[:, :-1], counted, objective)
                / batch.num_targets
            )
        if objective.states:
            assert target_states is not None
            assert states is not None
            terms["states"] = (
                objective.states
                * relative_error(states, target_states)
                / max(1, batch.replayed.count)
            )
        return terms

    @torch.no_grad()
    def _teach(self, batch: SequenceBatch) -> tuple[Tensor, Tensor | None]:
        """The frozen base under the recorded impulses, in one teacher-forced pass."""
        with self.student.without_adapter():
            return self._run(batch, steered=True)

    def _run(self, batch: SequenceBatch, *, steered: bool) -> tuple[Tensor, Tensor | None]:
        """Logits, and the states at control points after what was added there."""
        found: dict[str, Tensor] = {}

        def keep(states: Tensor) -> None:
            found["states"] = batch.replayed.at(states)

        device = next(self.module.parameters()).device
        blocks = self.student.base.blocks
        with ExitStack() as hooks:
            if steered:
                points = batch.replayed
                hook = ControlHook(points.controllers)
                edited = frozenset(edit.block for edit in points.plan.edits)
                hooks.enter_context(hook.attached(blocks, edited))
                hooks.enter_context(hook.carrying_out(points.plan))
            if self.objective.needs_teacher:
                # Hooks run in the order they are made: this one sees what the first has added.
                hooks.enter_context(block_hooks(blocks, {batch.replayed.block: keep}))
            logits = self.module(
                input_ids=batch.token_ids.to(device),
                attention_mask=batch.mask.to(device),
                use_cache=False,
            ).logits
        return logits, found.get("states")


def divergence(
    student: Float[Tensor, "B T V"],
    teacher: Float[Tensor, "B T V"],
    counted: Bool[Tensor, "B T"],
    objective: ObjectiveConfig,
) -> Float[Tensor, ""]:
    """Generalised Jensen-Shannon divergence (nats) of next-token distributions, summed.

    With ``m = (1 - beta) student + beta teacher`` it is ``beta KL(teacher|m) + (1 - beta)
    KL(student|m)``; at the ends, where that is zero, ``beta = 0`` is ``KL(teacher|student)`` and
    ``beta = 1`` is ``KL(student|teacher)`` (GKD, arXiv 2306.13649).
    """
    own = student[counted].float().log_softmax(-1)
    target = teacher[counted].float().log_softmax(-1)
    if objective.top_k is not None and objective.top_k < own.shape[-1]:
        kept = target.topk(objective.top_k, dim=-1).indices
        own, target = _with_rest(own.gather(-1, kept)), _with_rest(target.gather(-1, kept))
    beta = objective.beta
    if beta == 0.0:
        return _kl(target, own)
    if beta == 1.0:
        return _kl(own, target)
    mixture = torch.logaddexp(own + math.log1p(-beta), target + math.log(beta))
    return beta * _kl(target, mixture) + (1 - beta) * _kl(own, mixture)


def relative_error(
    student: Float[Tensor, "P D"], teacher: Float[Tensor, "P D"]
) -> Float[Tensor, ""]:
    """Squared distance of states over the teacher's squared norm, summed over control points."""
    target = teacher.float()
    squared = (student.float() - target).square().sum(-1)
    return (squared / target.square().sum(-1)).sum()


def _kl(one: Float[Tensor, "N V"], other: Float[Tensor, "N V"]) -> Float[Tensor, ""]:
    return (one.exp() * (one - other)).sum()


def _with_rest(logprobs: Float[Tensor, "N K"]) -> Float[Tensor, "N K1"]:
    """Append the probability of all other tokens as one more."""
    kept = logprobs.logsumexp(-1, keepdim=True).clamp(max=-1e-6)
    return torch.cat([logprobs, torch.log(-torch.expm1(kept))], dim=-1)
