"""The distillation loss: student and teacher run over a part of a batch, and terms of what they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stir_train.config.learning import ObjectiveConfig
from stir_train.distill.interface import TermInputs
from stir_train.distill.samples import IGNORED, SequenceBatch
from stir_train.distill.terms import WeightedTerm, make_terms
from stir_train.models.hooks import BlockEdit, block_hooks
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
        logits, states = self._run(batch, lambda _states: None)
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
            below: dict[int, Tensor] = {}
            points = batch.replayed

            def read(block: int, states: Tensor) -> None:
                below[block] = points.at(states)

            reading = {block: partial(read, block) for block in points.reads[:-1]}
            return self._run(
                batch,
                lambda states: points.inject(states, [below[b] for b in reading]),
                reading,
            )

    def _run(
        self,
        batch: SequenceBatch,
        edit: Callable[[Tensor], Tensor | None],
        reading: Mapping[int, BlockEdit] = MappingProxyType({}),
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, and the states at control points after the edit."""
        found: dict[str, Tensor] = {}

        def on_block(states: Tensor) -> Tensor | None:
            edited = edit(states)
            found["states"] = batch.replayed.at(states if edited is None else edited)
            return edited

        hooks = {**reading, batch.replayed.block: on_block} if self.needs_teacher else {}
        device = next(self.module.parameters()).device
        with block_hooks(self.student.base.blocks, hooks):
            logits = self.module(
                input_ids=batch.token_ids.to(device),
                attention_mask=batch.mask.to(device),
                use_cache=False,
            ).logits
        return logits, found.get("states")
