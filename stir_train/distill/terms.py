"""The shipped distillation terms, and the terms of an objective."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from stir_train.config.import_path import load_object
from stir_train.config.learning import SHIPPED_TERMS, ObjectiveConfig
from stir_train.distill.interface import DistillTerm, TermInputs
from stir_train.errors import ConfigError


@dataclass(frozen=True)
class WeightedTerm:
    """A term of an objective: its name there, its weight, and what computes it."""

    name: str
    weight: float
    term: DistillTerm


def make_terms(objective: ObjectiveConfig) -> tuple[WeightedTerm, ...]:
    """The terms of an objective that have a weight, in the order of its settings.

    Raises:
        ConfigError: If one cannot be imported, is no term, or takes a teacher that the samples lack.
    """
    terms = tuple(
        WeightedTerm(name, weight, _make_term(name)) for name, weight in objective.weights.items()
    )
    taught = [part.name for part in terms if part.term.needs_teacher]
    if taught and objective.samples != "steered" and not objective.instruction:
        raise ConfigError(
            f"distill.objective: {objective.samples} samples have no steered teacher, which {', '.join(taught)} "
            "needs; set samples=steered, or give the teacher an instruction"
        )
    if objective.on_policy and not taught:
        raise ConfigError(
            "distill.objective.on_policy: no term has a teacher to judge; give logits or states a weight"
        )
    return terms


def replays_steering(objective: ObjectiveConfig) -> bool:
    """Whether a term needs the steered teacher, whose recorded impulses are replayed."""
    taught = any(part.term.needs_teacher for part in make_terms(objective))
    return taught and not objective.instruction


def _make_term(name: str) -> DistillTerm:
    kind = f"distill.objective.terms.{name}"
    path = SHIPPED_TERMS.get(name, name)
    factory = load_object(path, kind=kind)
    made = factory() if callable(factory) else factory
    if not isinstance(made, DistillTerm) or isinstance(made, type):
        raise ConfigError(
            f"{kind}: {path} makes a {type(made).__name__}; expected a class whose objects have "
            "needs_teacher and can be called (stir_train.distill.interface.DistillTerm)"
        )
    return made


class SequenceTerm:
    """Cross-entropy of the completions' tokens (nats)."""

    needs_teacher = False

    def __call__(self, inputs: TermInputs) -> Float[Tensor, ""] | None:
        """Mean over tokens; None of tokens that are the student's own."""
        if inputs.by_student:
            return None
        summed = functional.cross_entropy(inputs.logits, inputs.labels, reduction="sum")
        return summed / inputs.num_targets


class LogitsTerm:
    """Divergence from the teacher's next-token distributions (nats)."""

    needs_teacher = True

    def __call__(self, inputs: TermInputs) -> Float[Tensor, ""]:
        """Summed over this part, over the completion tokens of the whole batch."""
        assert inputs.teacher_logits is not None
        summed = divergence(inputs.logits, inputs.teacher_logits, inputs.objective)
        return summed / inputs.num_targets


class StatesTerm:
    """Relative squared error of the steered block's states."""

    needs_teacher = True

    def __call__(self, inputs: TermInputs) -> Float[Tensor, ""]:
        """Summed over this part, over the control points of the whole batch."""
        assert inputs.states is not None
        assert inputs.teacher_states is not None
        return relative_error(inputs.states, inputs.teacher_states) / inputs.num_points


class PolicyGradientTerm:
    """Minus the clipped surrogate of the expected reward (PPO, arXiv 1707.06347), without a penalty.

    Where the student still is the sampler, its gradient is that of ``log p`` of every completion times its advantage.
    """

    needs_teacher = False

    def __call__(self, inputs: TermInputs) -> Float[Tensor, ""] | None:
        """Mean over tokens; None where completions are not compared."""
        if inputs.compared is None:
            return None
        worth, clip = inputs.compared.advantages, inputs.objective.clip
        logprobs = -functional.cross_entropy(inputs.logits, inputs.labels, reduction="none")
        ratio = (logprobs - inputs.compared.logprobs).exp()
        gains = torch.minimum(ratio * worth, ratio.clamp(1 - clip, 1 + clip) * worth)
        return -gains.sum() / inputs.num_targets


def divergence(
    student: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], objective: ObjectiveConfig
) -> Float[Tensor, ""]:
    """Generalised Jensen-Shannon divergence (nats) of next-token distributions, summed.

    With ``m = (1 - beta) student + beta teacher`` it is ``beta KL(teacher|m) + (1 - beta)
    KL(student|m)``; at the ends, where that is zero, ``beta = 0`` is ``KL(teacher|student)`` and
    ``beta = 1`` is ``KL(student|teacher)`` (GKD, arXiv 2306.13649).
    """
    own, target = student.log_softmax(-1), teacher.log_softmax(-1)
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
