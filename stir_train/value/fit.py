"""Fit and calibrate one block's value head."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.config.stages import ValueConfig
from stir_train.errors import StageError
from stir_train.models.value_head import ValueHead
from stir_train.train.loop import EarlyStopping, FitResult, StepRecord, fit, warmup_then_cosine
from stir_train.value.targets import ValueExamples

EVERY_STEPS, PATIENCE = 20, 5
TEMPERATURES = torch.logspace(-1, 1, 81)


def fit_value_head(
    train: ValueExamples,
    validation: ValueExamples,
    config: ValueConfig,
    *,
    max_points: int,
    max_new_tokens: int,
    seed: int,
    on_step: Callable[[StepRecord], None] | None = None,
) -> tuple[ValueHead, FitResult]:
    """Train on BCE of correctness and Huber loss of log tokens left; stop early; calibrate.

    Raises:
        StageError: If the examples are all right or all wrong.
    """
    rate = float(train.correct.mean()) if len(train.correct) else 0.0
    if not 0 < rate < 1:
        raise StageError(
            f"the value head needs right and wrong rollouts; {len(train.correct)} states have a "
            f"correct rate of {rate:.0%}. Use problems the model solves sometimes"
        )
    generator = torch.Generator().manual_seed(seed)
    head = ValueHead(
        width=train.states.shape[1],
        hidden_width=config.hidden_width,
        num_members=config.num_members,
        max_points=max_points,
        max_new_tokens=max_new_tokens,
        generator=generator,
    )
    head.mean.copy_(train.states.mean(0))
    head.scale.copy_(train.states.std(0).clamp_min(1e-6))
    with torch.no_grad():
        head.bias_out[..., 1] = train.log_tokens_left.mean()
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    result = fit(
        head,
        [optimizer],
        _batches(train, config.batch_size, generator),
        lambda batch: value_loss(head, batch, config.tokens_weight),
        num_steps=config.num_steps,
        schedule=warmup_then_cosine(config.num_steps, warmup_steps=10),
        early_stopping=EarlyStopping(
            lambda: _validate(head, validation, config.tokens_weight), EVERY_STEPS, PATIENCE
        ),
        on_step=on_step,
    )
    head.temperature.copy_(_best_temperature(head, validation))
    return head.eval().requires_grad_(requires_grad=False), result


def value_loss(head: ValueHead, batch: ValueExamples, tokens_weight: float) -> Tensor:
    """Mean over members and states of the two losses."""
    logits, log_tokens = head(batch.states, batch.points)
    correct = batch.correct.expand_as(logits)
    tokens = batch.log_tokens_left.expand_as(log_tokens)
    right = torch.nn.functional.binary_cross_entropy_with_logits(logits, correct)
    return right + tokens_weight * torch.nn.functional.huber_loss(log_tokens, tokens)


def _validate(head: ValueHead, examples: ValueExamples, tokens_weight: float) -> float:
    with torch.no_grad():
        return float(value_loss(head, examples, tokens_weight))


def _batches(
    examples: ValueExamples, batch_size: int, generator: torch.Generator
) -> Iterator[ValueExamples]:
    count = len(examples.correct)
    while True:
        order = torch.randperm(count, generator=generator)
        for part in order.split(batch_size):
            yield examples.select(part)


@torch.no_grad()
def _best_temperature(head: ValueHead, examples: ValueExamples) -> Float[Tensor, ""]:
    """The temperature of least validation BCE, on the members' mean probability."""
    logits, _ = head(examples.states, examples.points)
    losses = torch.stack(
        [
            torch.nn.functional.binary_cross_entropy(
                torch.sigmoid(logits / temperature).mean(0), examples.correct
            )
            for temperature in TEMPERATURES
        ]
    )
    return TEMPERATURES[int(losses.argmin())]
