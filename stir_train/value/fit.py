"""Fit and calibrate one block's value head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stir_train.config.learning import TrainConfig
from stir_train.config.stages import ValueConfig
from stir_train.distributed.engine import TrainEngine, open_engine
from stir_train.distributed.world import World, alone
from stir_train.errors import StageError
from stir_train.models.value_head import ValueHead
from stir_train.train.checkpoint import CheckpointFile
from stir_train.train.loop import (
    EarlyStopping,
    FitPlan,
    FitResult,
    StepRecord,
    fit,
    parts_of,
    warmup_then_cosine,
)
from stir_train.value.targets import ValueBatch, ValueExamples

EVERY_STEPS, PATIENCE = 20, 5
TEMPERATURES = torch.logspace(-1, 1, 81)
FAMILIAR = 0.999
"""Share of held-out states that count as like those of the training."""
MOST_SAMPLED_INPUTS = 1 << 26
"""Where a sample of the states says as much as all, as many are read as hold so many numbers (256 MiB): of a
7B model 18,000 of one block or 6,000 of three."""
BAGGED = 0.75
"""Each member learns from this share of the prompts, its own: where they differ, data are few."""


@dataclass(frozen=True)
class TrainSetup:
    """With what and with whom to train: the engine's settings, the ranks, checkpoints, a listener."""

    config: TrainConfig
    world: World
    checkpoints: CheckpointFile | None = None
    on_step: Callable[[StepRecord], None] | None = None


def fit_value_head(
    train: ValueExamples,
    validation: ValueExamples,
    config: ValueConfig,
    *,
    reads: Sequence[int],
    max_points: int,
    max_new_tokens: int,
    seed: int,
    setup: TrainSetup | None = None,
) -> tuple[ValueHead, FitResult]:
    """Train on BCE of correctness and Huber loss of log tokens left; stop early; calibrate.

    The head also keeps what states it learned from look like, to know where it has a say. That distribution
    and early stopping go by a sample of the states where there are many.

    Collective: every rank passes all examples, works on its share of each batch, and gets the same
    head. Without a ``setup`` it trains in this process.

    Raises:
        StageError: If there are no examples.
    """
    if not len(train):
        raise StageError(
            "the value head has no states to learn from; no rollout reaches a control point"
        )
    generator = torch.Generator().manual_seed(seed)
    head = ValueHead(
        reads=reads,
        width=train.inputs.directions.shape[1],
        hidden_width=config.hidden_width,
        num_members=config.num_members,
        max_points=max_points,
        max_new_tokens=max_new_tokens,
        generator=generator,
    )
    _start_from(head, train)
    # A copy of its own for the caller: an engine may keep its model in pieces.
    trained = copy.deepcopy(head)
    result = _train(head, trained, (train, validation), config, generator, seed, setup)
    trained.temperature.copy_(_best_temperature(trained, validation))
    trained.fit_state_distribution(
        (batch.states for batch in _sampled(train, trained.width, seed).pieces()),
        (batch.states for batch in validation.pieces()),
        share=FAMILIAR,
    )
    return trained.eval().requires_grad_(requires_grad=False), result


def _sampled(examples: ValueExamples, width: int, seed: int) -> ValueExamples:
    """As many as may be gone through again and again, each of so many numbers; all of a small model's."""
    most = max(1, MOST_SAMPLED_INPUTS // width)
    return examples.sample(most, torch.Generator().manual_seed(seed))


def _start_from(head: ValueHead, train: ValueExamples) -> None:
    """Standardise by the examples, and expect as many tokens as they have left."""
    mean, deviation = moments(batch.states for batch in train.pieces())
    head.mean.copy_(mean)
    head.scale.copy_(deviation.clamp_min(1e-6))
    with torch.no_grad():
        head.bias_out[..., 1] = train.log_tokens_left.mean()


def _train(
    head: ValueHead,
    trained: ValueHead,
    examples: tuple[ValueExamples, ValueExamples],
    config: ValueConfig,
    generator: torch.Generator,
    seed: int,
    setup: TrainSetup | None,
) -> FitResult:
    """Fit ``head`` and copy its parameters to ``trained``; the examples are to train and to validate."""
    train, watched = examples[0], _sampled(examples[1], examples[1].inputs.width, seed)
    setup = setup or TrainSetup(TrainConfig(), alone())
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    engine = open_engine(head, optimizer, setup.config, setup.world)
    module, weight = engine.module, config.tokens_weight
    bags = torch.rand((config.num_members, int(train.prompt.max()) + 1), generator=generator)
    order = generator.get_state()

    def loss(part: _Part) -> Tensor:
        weights = (bags[:, part.batch.prompt] < BAGGED) / BAGGED
        return part.share * value_loss(module, part.batch, weight, weights)

    result = fit(
        engine,
        lambda step: _batches(train, config.batch_size, order, engine, step),
        loss,
        FitPlan(
            num_steps=config.num_steps,
            schedule=warmup_then_cosine(config.num_steps, warmup_steps=10),
            seed=seed,
            early_stopping=EarlyStopping(
                lambda: _validate(module, watched, weight), EVERY_STEPS, PATIENCE
            ),
            checkpoints=setup.checkpoints,
            on_step=setup.on_step,
        ),
    )
    with torch.no_grad():
        for name, value in engine.parameters().items():
            trained.get_parameter(name).copy_(value)
    return result


def predict(head: ValueHead, examples: ValueExamples) -> Float[Tensor, "R"]:
    """Calibrated P(correct) of all examples, a piece in memory at a time."""
    return torch.cat(
        [
            head.p_correct(batch.states, batch.points, batch.impulses)[0]
            for batch in examples.pieces()
        ]
    )


def moments(
    pieces: Iterable[Float[Tensor, "_ W"]],
) -> tuple[Float[Tensor, "W"], Float[Tensor, "W"]]:
    """Mean and standard deviation of every column, over all rows of all pieces.

    Of one piece they are torch's own, to the bit; those of more are merged in float64 (Chan, Golub
    and LeVeque 1983).
    """
    first, *others = ((len(piece), piece.mean(0), piece.std(0)) for piece in pieces)
    count, mean, deviation = first
    for more, other_mean, other_deviation in others:
        total, gap = count + more, other_mean.double() - mean.double()
        squares = deviation.double().square() * (count - 1)
        squares += other_deviation.double().square() * (more - 1)
        squares += gap.square() * (count * more / total)
        mean = mean.double() + gap * (more / total)
        count, deviation = total, (squares / (total - 1)).sqrt()
    return mean.float(), deviation.float()


@dataclass(frozen=True)
class _Part:
    """Some examples of a batch, and what share of the batch they are."""

    batch: ValueBatch
    share: float


def value_loss(
    head: nn.Module,
    batch: ValueBatch,
    tokens_weight: float,
    weights: Float[Tensor, "E B"] | None = None,
) -> Tensor:
    """Mean over members and states of the two losses, weighted."""
    logits, log_tokens = head(batch.states, batch.points, batch.impulses)
    correct = batch.correct.expand_as(logits)
    tokens = batch.log_tokens_left.expand_as(log_tokens)
    right = torch.nn.functional.binary_cross_entropy_with_logits(logits, correct, reduction="none")
    length = torch.nn.functional.huber_loss(log_tokens, tokens, reduction="none")
    losses = right + tokens_weight * length
    return (losses if weights is None else weights * losses).mean()


def _validate(head: nn.Module, examples: ValueExamples, tokens_weight: float) -> float:
    with torch.no_grad():
        return sum(
            float(value_loss(head, batch, tokens_weight)) * (len(batch.points) / len(examples))
            for batch in examples.pieces()
        )


def _batches(
    examples: ValueExamples, batch_size: int, order: Tensor, engine: TrainEngine, start: int
) -> Iterator[list[_Part]]:
    """This rank's parts of every batch from step ``start`` on."""
    generator = torch.Generator()
    generator.set_state(order)
    step = 0
    while True:
        epoch = torch.randperm(len(examples), generator=generator)
        for batch in epoch.split(batch_size):
            if step >= start:
                # A part without examples still takes part: its loss counts for nothing.
                yield [
                    _Part(examples.batch(torch.tensor(part or [0])), len(part) / len(batch))
                    for part in parts_of(batch.tolist(), engine)
                ]
            step += 1


@torch.no_grad()
def _best_temperature(head: ValueHead, examples: ValueExamples) -> Float[Tensor, ""]:
    """The temperature of least validation BCE, on the members' mean probability."""
    outputs = (head(batch.states, batch.points, batch.impulses) for batch in examples.pieces())
    logits = torch.cat([logits for logits, _ in outputs], dim=1)
    losses = torch.stack(
        [
            torch.nn.functional.binary_cross_entropy(
                torch.sigmoid(logits / temperature).mean(0), examples.correct
            )
            for temperature in TEMPERATURES
        ]
    )
    return TEMPERATURES[int(losses.argmin())]
