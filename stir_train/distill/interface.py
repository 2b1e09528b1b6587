"""What a distillation term is: a loss of one part of a batch, from what student and teacher made of it.

A term of one's own is a class named by import path in ``distill.objective.terms``; one that is
shipped is a module here and a line in `SHIPPED_TERMS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.config.learning import ObjectiveConfig


@dataclass(frozen=True)
class TermInputs:
    """One part of a batch: ``B`` right-padded sequences, ``S`` predictions each, ``P`` control points.

    Attributes:
        logits: ``Float[B S V]``, the student's; prediction ``s`` is of the token at ``s + 1``.
        labels: ``Int[B S]``, the tokens that should follow; below 0 on prompts and padding.
        counted: ``Bool[B S]``, where labels count: the completions.
        teacher_logits: ``Float[B S V]``, the steered teacher's, without gradient; None if no term of
            the objective needs a teacher.
        states: ``Float[P D]``, the student's after the steered block, at the control points of the
            completions; None likewise.
        teacher_states: ``Float[P D]``, the teacher's there, its impulse added; without gradient.
        num_targets: Counted labels of the whole batch, over parts and ranks.
        num_points: Control points of the whole batch, at least 1.
        by_student: The tokens are the student's own (on-policy), and nobody's target.
        objective: The objective's settings.
    """

    logits: Float[Tensor, "B S V"]
    labels: Int[Tensor, "B S"]
    counted: Bool[Tensor, "B S"]
    teacher_logits: Float[Tensor, "B S V"] | None
    states: Float[Tensor, "P D"] | None
    teacher_states: Float[Tensor, "P D"] | None
    num_targets: int
    num_points: int
    by_student: bool
    objective: ObjectiveConfig


@runtime_checkable
class DistillTerm(Protocol):
    """A loss to be weighted and added to others.

    It is made once a student, without arguments, and keeps nothing between batches, so that a
    resumed fit ends with the same bytes.

    Attributes:
        needs_teacher: Whether it reads the teacher's logits or states, at one more pass a batch.
    """

    needs_teacher: bool

    def __call__(self, inputs: TermInputs) -> Float[Tensor, ""] | None:
        """The sum over this part divided by the whole batch's number (``num_targets``, ``num_points``).

        Parts and ranks then add up to the batch's mean. None if the term says nothing of such a batch.
        """
        ...
