"""One fit loop for everything that learns here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

Batch = TypeVar("Batch")
GRADIENT_CLIP = 1.0
"""Gradient norm above which gradients are scaled down."""
Schedule = Callable[[int], float]
"""Step (0-based) to a factor on each optimizer's own learning rate."""


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step reports.

    Attributes:
        step: 1-based count of finished steps.
        loss: Training loss of this step.
        grad_norm: Gradient norm before clipping.
        rate_factor: The schedule's factor at this step.
    """

    step: int
    loss: float
    grad_norm: float
    rate_factor: float


@dataclass
class FitResult:
    """How a fit ended: steps done, the loss history, and the best validation if there was one."""

    num_steps: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best_step: int | None = None


@dataclass(frozen=True)
class EarlyStopping:
    """Validate every few steps, keep the best parameters, stop when they stop improving.

    Attributes:
        evaluate: Returns the validation loss (lower is better).
        every_steps: Steps between validations.
        patience: Validations without improvement before the fit ends.
    """

    evaluate: Callable[[], float]
    every_steps: int
    patience: int


def warmup_then_linear(num_steps: int, *, warmup_steps: int, decay_from: float = 0.0) -> Schedule:
    """Rise linearly over the warm-up, hold, then fall linearly to zero.

    Args:
        num_steps: Length of the fit.
        warmup_steps: Steps of the rise.
        decay_from: Fraction of the fit after which the fall begins.
    """

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(1, warmup_steps))
        fall = min(1.0, (1 - step / num_steps) / max(1e-9, 1 - decay_from))
        return rise * fall

    return factor


def warmup_then_cosine(num_steps: int, *, warmup_steps: int) -> Schedule:
    """Rise linearly over the warm-up, then fall along half a cosine to zero."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def fit(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Iterator[Batch],
    loss_of: Callable[[Batch], torch.Tensor],
    *,
    num_steps: int,
    schedule: Schedule,
    early_stopping: EarlyStopping | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> FitResult:
    """Run ``num_steps`` optimizer steps on the trainable parameters of ``model``, in place.

    With early stopping the model ends holding its best validated parameters.

    Raises:
        FloatingPointError: If the loss stops being finite.
    """
    base_rates = [[group["lr"] for group in opt.param_groups] for opt in optimizers]
    trainable = [p for p in model.parameters() if p.requires_grad]
    keeper = None if early_stopping is None else _BestKeeper(early_stopping, trainable)
    result = FitResult()
    for step in range(num_steps):
        factor = schedule(step)
        for opt, rates in zip(optimizers, base_rates, strict=True):
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        loss = loss_of(next(batches))
        loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} at step {step + 1}")
        norm = float(nn.utils.clip_grad_norm_(trainable, GRADIENT_CLIP))
        for opt in optimizers:
            opt.step()
            opt.zero_grad(set_to_none=True)
        result.num_steps = step + 1
        result.losses.append(value)
        if on_step is not None:
            on_step(StepRecord(step + 1, value, norm, factor))
        if keeper is not None and keeper.should_stop(step + 1, result):
            break
    if keeper is not None:
        keeper.restore()
    return result


class _BestKeeper:
    """Keeps the best validated parameters and says when to stop."""

    def __init__(self, rule: EarlyStopping, parameters: list[nn.Parameter]) -> None:
        self._rule, self._parameters = rule, parameters
        self._best: list[torch.Tensor] | None = None
        self._bad_checks = 0

    def should_stop(self, step: int, result: FitResult) -> bool:
        """Validate when it is time; record the score."""
        if step % self._rule.every_steps:
            return False
        score = self._rule.evaluate()
        if not result.validation or score < min(value for _, value in result.validation):
            self._best = [p.detach().clone() for p in self._parameters]
            self._bad_checks, result.best_step = 0, step
        else:
            self._bad_checks += 1
        result.validation.append((step, score))
        return self._bad_checks >= self._rule.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best parameters back."""
        if self._best is not None:
            for parameter, kept in zip(self._parameters, self._best, strict=True):
                parameter.copy_(kept)
