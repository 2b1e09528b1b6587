"""The distillation loss: student and teacher run over a part of a batch, and terms of what they make."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stir_train.config.learning import ObjectiveConfig
from stir_train.distill.interface import TermInputs
from stir_train.distill.samples import IGNORED, SequenceBatch
from stir_train.distill.terms import WeightedTerm, make_terms
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

    @cached_property
    def terms(self) -> tuple[WeightedTerm, ...]:
        """The objective's terms that have a weight."""
        return make_terms(self.objective)

    @cached_property
    def needs_teacher(self) -> bool:
        """Whether the recorded impulses are replayed."""
        return any(part.term.needs_teacher for part in self.terms)

    def __call__(self, batch: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Every term times its weight, by its name in the objective."""
        teacher = self._teach(batch) if self.needs_teacher else None
        logits, states = self._run(batch, steered=False)
        labels = batch.labels[:, 1:].to(logits.device)
        inputs = TermInputs(
            logits=logits[:, :-1],
            labels=labels,
            counted=labels != IGNORED,
            teacher_logits=None if teacher is None else teacher[0][:, :-1],
            states=states,
            teacher_states=None if teacher is None else teacher[1],
            num_targets=batch.num_targets,
            num_points=1 if batch.points is None else max(1, batch.points.count),
            by_student=batch.by_student,
            objective=self.objective,
        )
        values = {part.name: (part.weight, part.term(inputs)) for part in self.terms}
        return {
            name: weight * value for name, (weight, value) in values.items() if value is not None
        }

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
            if self.needs_teacher:
                # Hooks run in the order they are made: this one sees what the first has added.
                hooks.enter_context(block_hooks(blocks, {batch.replayed.block: keep}))
            logits = self.module(
                input_ids=batch.token_ids.to(device),
                attention_mask=batch.mask.to(device),
                use_cache=False,
            ).logits
        return logits, found.get("states")
