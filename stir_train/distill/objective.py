"""The distillation loss: student and teacher run over a part of a batch, and terms of what they make.

Logits are the largest thing in it: 16 thousand tokens of a vocabulary of 152 thousand take 10 GB, many
times over. So a pass ends below the output layer. What it would have been fed is kept where tokens count,
and the layer and the terms run over a few of those at a time. Their gradient in those states is taken at once,
so that no logits wait for the backward pass (as Liger's fused loss does, arXiv 2410.10989).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stir_train.config.learning import ObjectiveConfig
from stir_train.distill.interface import ComparedTokens, TermInputs
from stir_train.distill.samples import IGNORED, SequenceBatch
from stir_train.distill.terms import WeightedTerm, make_terms
from stir_train.generation.control_hook import ControlHook
from stir_train.models.hooks import block_hooks
from stir_train.models.lora import Student
from stir_train.models.output_head import LOGITS_AT_ONCE, OutputHead


@dataclass(frozen=True)
class PassStates:
    """What a pass leaves to compute terms from.

    Attributes:
        hidden: ``Float[N D]``, what the output layer is to be fed where tokens count.
        at_points: ``Float[P D]``, the states at control points, what was added included; None if no
            term needs the steered teacher.
    """

    hidden: Float[Tensor, "N D"]
    at_points: Float[Tensor, "P D"] | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that there are, in this order."""
        return (self.hidden,) if self.at_points is None else (self.hidden, self.at_points)


@dataclass(frozen=True)
class Chunk:
    """Some tokens and some control points of a part."""

    labels: Int[Tensor, "N"]
    student: PassStates
    teacher: PassStates | None
    compared: ComparedTokens | None


@dataclass(frozen=True)
class DistillLoss:
    """The weighted objectives of one part of a batch, by name; the loss is their sum.

    Each is a sum over this part's tokens (or control points) divided by those of the whole batch:
    parts and ranks add up to the batch's mean.

    Attributes:
        module: What is called: the student, or the training engine around it.
        student: The student inside, whose adapter can be switched off.
        objective: Weights.
        logits_at_once: Of the student, held at a time; the teacher's are as many.
    """

    module: nn.Module
    student: Student
    objective: ObjectiveConfig
    logits_at_once: int = LOGITS_AT_ONCE

    @cached_property
    def terms(self) -> tuple[WeightedTerm, ...]:
        """The objective's terms that have a weight."""
        return make_terms(self.objective)

    @cached_property
    def needs_teacher(self) -> bool:
        """Whether a term reads what a teacher makes of the same tokens."""
        return any(part.term.needs_teacher for part in self.terms)

    @cached_property
    def head(self) -> OutputHead:
        """The output layer, once it is known to be all that is above the blocks. Collective.

        Raises:
            ModelError: If the architecture changes logits in an unknown way.
        """
        head = OutputHead(self.student.base, logits_at_once=self.logits_at_once)
        token_ids = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        # Without the adapter, whose dropout would draw differently in the pass and in the check.
        with torch.no_grad(), self.student.without_adapter():
            with head.apart(num_through=1) as fed:
                logits = self.module(input_ids=token_ids, use_cache=False).logits
            head.require_equal(fed[0], logits)
        return head

    def __call__(self, batch: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Every term times its weight, by its name in the objective."""
        num_chunks = self._num_chunks(batch)
        teacher = self._teach(batch) if self.needs_teacher else None
        student = self._run(batch, steered=False)
        summed: dict[str, Tensor] = {}
        for chunk in _chunks(batch, student, teacher, num_chunks):
            if num_chunks > 1 and torch.is_grad_enabled():
                values = self._evaluate_with_gradients(batch, chunk)
            else:
                values = self._evaluate(batch, chunk)
            for name, value in values.items():
                summed[name] = summed[name] + value if name in summed else value
        return summed

    def _num_chunks(self, batch: SequenceBatch) -> int:
        """As many for every part, by the largest: ranks that gather the layer together call it equally often."""
        if self.head.is_trained:
            return 1  # its own gradient has to wait for the backward pass
        return max(1, -(-batch.most_targets // self.head.rows_at_once))

    def _evaluate_with_gradients(
        self, batch: SequenceBatch, chunk: Chunk
    ) -> dict[str, Float[Tensor, ""]]:
        """The same, each with its gradient in the student's states already taken."""
        given = chunk.student.tensors
        leaves = [states.detach().requires_grad_() for states in given]
        apart = dataclasses.replace(chunk, student=PassStates(*leaves))
        made = {}
        for name, value in self._evaluate(batch, apart).items():
            # Zeros where a term does not look.
            gradients = torch.autograd.grad(
                value, leaves, retain_graph=True, materialize_grads=True
            )
            made[name] = _WithGradients.apply(value.detach(), gradients, *given)
        return made

    def _evaluate(self, batch: SequenceBatch, chunk: Chunk) -> dict[str, Float[Tensor, ""]]:
        """The weighted terms of a chunk, from its logits, which are held here alone."""
        teacher_logits = None
        if chunk.teacher is not None:
            with torch.no_grad():
                teacher_logits = self.head.logits(chunk.teacher.hidden, adapted=False)
        inputs = TermInputs(
            logits=self.head.logits(chunk.student.hidden),
            labels=chunk.labels,
            teacher_logits=teacher_logits,
            states=chunk.student.at_points,
            teacher_states=None if chunk.teacher is None else chunk.teacher.at_points,
            num_targets=batch.num_targets,
            num_points=1 if batch.points is None else max(1, batch.points.count),
            by_student=batch.by_student,
            objective=self.objective,
            compared=chunk.compared,
        )
        values = {part.name: (part.weight, part.term(inputs)) for part in self.terms}
        return {
            name: weight * value for name, (weight, value) in values.items() if value is not None
        }

    @torch.no_grad()
    def _teach(self, batch: SequenceBatch) -> PassStates:
        """The frozen base under the recorded impulses or an instruction, in one teacher-forced pass."""
        with self.student.without_adapter():
            if batch.instructed is not None:
                return self._run(batch.instructed, steered=False)
            return self._run(batch, steered=True)

    def _run(self, batch: SequenceBatch, *, steered: bool) -> PassStates:
        """Everything below the output layer, in one pass."""
        found: dict[str, Tensor] = {}

        def keep(states: Tensor) -> None:
            found["states"] = batch.replayed.at(states)

        blocks, head = self.student.base.blocks, self.head
        with ExitStack() as hooks:
            if steered:
                points = batch.replayed
                hook = ControlHook(points.controllers)
                edited = frozenset(edit.block for edit in points.plan.edits)
                hooks.enter_context(hook.attached(blocks, edited))
                hooks.enter_context(hook.carrying_out(points.plan))
            if batch.points is not None:
                # Hooks run in the order they are made: this one sees what the first has added.
                hooks.enter_context(block_hooks(blocks, {batch.replayed.block: keep}))
            fed = hooks.enter_context(head.apart())
            self.module(
                input_ids=batch.token_ids.to(self._device),
                attention_mask=batch.mask.to(self._device),
                use_cache=False,
            )
        (states,) = fed
        counted = batch.labels[:, 1:] != IGNORED
        return PassStates(states[:, :-1][counted.to(states.device)], found.get("states"))

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


class _WithGradients(torch.autograd.Function):
    """A value whose gradients in some tensors are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *_given: Tensor) -> Tensor:
        """Return the value, and keep the gradients for `backward`."""
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:
        """Return the known gradients, times the gradient of what the value went into."""
        (scale,) = scales
        return (None, None, *(scale * gradient for gradient in ctx.saved_tensors))


def _chunks(
    batch: SequenceBatch, student: PassStates, teacher: PassStates | None, count: int
) -> Iterator[Chunk]:
    """Cut a part into so many chunks of like size, some of them empty if there is too little."""
    labels, device = batch.labels[:, 1:], student.hidden.device
    counted = labels != IGNORED
    of_labels = labels[counted].to(device).tensor_split(count)
    of_student = _cut(student, count)
    of_teacher: Sequence[PassStates | None] = [None] * count
    if teacher is not None:
        of_teacher = _cut(teacher, count)
    of_compared: Sequence[ComparedTokens | None] = [None] * count
    if batch.compared is not None:
        tokens = batch.compared.at(counted)
        both = (one.to(device).tensor_split(count) for one in (tokens.advantages, tokens.logprobs))
        of_compared = [ComparedTokens(*some) for some in zip(*both, strict=True)]
    for parts in zip(of_labels, of_student, of_teacher, of_compared, strict=True):
        yield Chunk(*parts)


def _cut(states: PassStates, count: int) -> list[PassStates]:
    hidden = states.hidden.tensor_split(count)
    if states.at_points is None:
        return [PassStates(some) for some in hidden]
    return [
        PassStates(*both) for both in zip(hidden, states.at_points.tensor_split(count), strict=True)
    ]
