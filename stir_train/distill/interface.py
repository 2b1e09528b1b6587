"""What a distillation term is: a loss of a few tokens, from what student and teacher make of them.

A term of one's own is a class named by import path in ``distill.objective.terms``; one that is
shipped is a module here and a line in `SHIPPED_TERMS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from stir_train.config.learning import ObjectiveConfig


@dataclass(frozen=True)
class ComparedTokens:
    """Tokens of completions that are weighed against others of their problems.

    Attributes:
        advantages: ``Float[N]``, of the completion that each token belongs to.
        logprobs: ``Float[N]`` (nats), of each token when it was sampled, at temperature 1.
    """

    advantages: Float[Tensor, "N"]
    logprobs: Float[Tensor, "N"]


@dataclass(frozen=True)
class TermInputs:
    """Some tokens of a batch's completions and some of its control points; they need not be at the same places.

    A batch is cut into such chunks because the logits of all of it do not fit: a term may look at
    tokens one by one, and at control points one by one.

    Attributes:
        logits: ``Float[N V]``, the student's predictions of ``N`` tokens, in float32 or better.
        labels: ``Int[N]``, the tokens that followed.
        teacher_logits: ``Float[N V]``, the teacher's, without gradient; None if no term of the
            objective needs a teacher.
        states: ``Float[P D]``, the student's after the steered block, at ``P`` control points; None
            likewise, and where the teacher is given an instruction and not steered.
        teacher_states: ``Float[P D]``, the teacher's there, its impulse added; without gradient.
        num_targets: Tokens of the whole batch, over chunks, parts and ranks.
        num_points: Control points of the whole batch, at least 1.
        by_student: The tokens are the student's own (on-policy), and nobody's target.
        objective: The objective's settings.
        compared: What completions are worth beside others; None unless samples are compared.
    """

    logits: Float[Tensor, "N V"]
    labels: Int[Tensor, "N"]
    teacher_logits: Float[Tensor, "N V"] | None
    states: Float[Tensor, "P D"] | None
    teacher_states: Float[Tensor, "P D"] | None
    num_targets: int
    num_points: int
    by_student: bool
    objective: ObjectiveConfig
    compared: ComparedTokens | None = None


@runtime_checkable
class DistillTerm(Protocol):
    """A loss to be weighted and added to others.

    It is made once a student, without arguments, and keeps nothing between calls, so that a resumed
    fit ends with the same bytes.

    Attributes:
        needs_teacher: Whether it reads the teacher's logits or states, at one more pass a batch.
    """

    needs_teacher: bool

    def __call__(self, inputs: TermInputs) -> Float[Tensor, ""] | None:
        """The sum over this chunk divided by the whole batch's number (``num_targets``, ``num_points``).

        Chunks, parts and ranks then add up to the batch's mean. None if the term says nothing of such
        a batch. A chunk may be empty.
        """
        ...
