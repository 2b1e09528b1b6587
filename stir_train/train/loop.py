"""One fit loop for everything that learns here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from stir_train.distributed.engine import TrainEngine
from stir_train.distributed.preemption import Preempted
from stir_train.train.checkpoint import Checkpoint, CheckpointFile

Batch = TypeVar("Batch")
WHOLE = ""
"""Stands for the whole loss among its terms."""
Schedule = Callable[[int], float]
"""Step (0-based) to a factor on each optimizer's own learning rate."""
Loss = torch.Tensor | Mapping[str, torch.Tensor]
"""What is descended, or the named terms whose sum is, the same names on every rank."""


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step reports.

    Attributes:
        step: 1-based count of finished steps.
        loss: Training loss of this step.
        grad_norm: Gradient norm before clipping.
        rate_factor: The schedule's factor at this step.
        terms: What the loss is the sum of, where it has named terms.
    """

    step: int
    loss: float
    grad_norm: float
    rate_factor: float
    terms: Mapping[str, float] = field(default_factory=dict)


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


@dataclass(frozen=True)
class FitPlan:
    """How long to fit and what to do on the way.

    Attributes:
        num_steps: Optimizer steps, those done before a resumption included.
        schedule: Factor on the learning rates.
        seed: Of dropout; each step draws from its own stream.
        early_stopping: When to validate and stop.
        checkpoints: Where to save; None starts from nothing after a cut.
        on_step: Told of every step, also of those before a resumption (their norms are NaN).
    """

    num_steps: int
    schedule: Schedule
    seed: int
    early_stopping: EarlyStopping | None = None
    checkpoints: CheckpointFile | None = None
    on_step: Callable[[StepRecord], None] | None = None


def fit(
    engine: TrainEngine,
    batches: Callable[[int], Iterator[Sequence[Batch]]],
    loss_of: Callable[[Batch], Loss],
    plan: FitPlan,
) -> FitResult:
    """Take the plan's optimizer steps on the trainable parameters, in place. Collective.

    With early stopping the model ends holding its best validated parameters. With checkpoints, a
    fit that was cut off goes on from the last one to the same result, on any number of ranks.

    Args:
        engine: Holds model and optimizer.
        batches: From a step (0-based) on, yields this rank's parts of each batch.
        loss_of: A part's share of the batch's loss: what is descended is the sum over parts and ranks.
        plan: How long, and what to do on the way.

    Raises:
        FloatingPointError: If the loss stops being finite.
        Preempted: After a checkpoint, if any rank was asked to stop.
    """
    rule, checkpoints = plan.early_stopping, plan.checkpoints
    fitting = _Fitting(engine, loss_of, plan, FitResult())
    keeper = None if rule is None else _BestKeeper(rule, engine)
    start = _resume(fitting, batches, keeper)
    source = batches(start)
    stopped = keeper is not None and keeper.is_done
    for step in range(start, plan.num_steps):
        if stopped:
            break
        record = fitting.step(step, next(source))
        if plan.on_step is not None:
            plan.on_step(record)
        if keeper is not None:
            stopped = keeper.should_stop(step + 1, fitting.result)
        if checkpoints is not None:
            leaving = engine.world.any(engine.world.asked_to_stop)
            if leaving or (step + 1) % checkpoints.every_steps == 0:
                _save(fitting, keeper, checkpoints)
            if leaving:
                raise Preempted
    if keeper is not None:
        keeper.restore()
    return fitting.result


def sum_of(terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The loss that named terms make up."""
    first, *others = terms.values()
    for term in others:
        first = first + term
    return first


def parts_of(indices: Sequence[int], engine: TrainEngine) -> list[list[int]]:
    """This rank's share of a batch, in as many parts as the engine takes; some may be empty."""
    own = engine.world.share(indices)
    return [own[part :: engine.num_parts] for part in range(engine.num_parts)]


def all_parts_of(indices: Sequence[int], engine: TrainEngine) -> list[list[int]]:
    """Every rank's parts of a batch, in no order that matters."""
    count = engine.world.size * engine.num_parts
    return [list(indices[first::count]) for first in range(count)]


@dataclass
class _Fitting:
    """A fit under way: takes steps and keeps the history."""

    engine: TrainEngine
    loss_of: Callable[[Any], Loss]
    plan: FitPlan
    result: FitResult

    def step(self, step: int, parts: Sequence[Any]) -> StepRecord:
        """Run one optimizer step over this rank's parts of a batch; losses are summed over ranks. Collective."""
        factor = self.plan.schedule(step)
        self.engine.set_rate(factor)
        own = self._accumulate(step, parts, weight=1.0)
        summed = self.engine.world.sum(torch.tensor(list(own.values()), dtype=torch.double))
        terms = dict(zip(own, summed.tolist(), strict=True))
        value = terms.pop(WHOLE)
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} at step {step + 1}")
        norm = self.engine.step()
        self.result.num_steps = step + 1
        self.result.losses.append(value)
        return StepRecord(step + 1, value, norm, factor, terms)

    def warm(self, parts: Sequence[Any]) -> None:
        """A step that changes nothing, after which the optimizer has state to load into."""
        self.engine.set_rate(0.0)
        self._accumulate(0, parts, weight=0.0)
        self.engine.step()

    def _accumulate(self, step: int, parts: Sequence[Any], *, weight: float) -> dict[str, float]:
        """Backpropagate every part; this rank's share of the loss, and of each named term."""
        world, totals = self.engine.world, {WHOLE: 0.0}
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(
                (self.plan.seed * 1_000_003 + step) * 4096 + world.rank
            )
            for part in parts:
                given = self.loss_of(part)
                terms = {} if isinstance(given, torch.Tensor) else given
                loss = given if isinstance(given, torch.Tensor) else sum_of(given)
                self.engine.backward(loss * weight if weight != 1.0 else loss)
                for name, term in {WHOLE: loss, **terms}.items():
                    totals[name] = totals.get(name, 0.0) + float(term.detach())
        return totals


def _resume(
    fitting: _Fitting,
    batches: Callable[[int], Iterator[Sequence[Any]]],
    keeper: _BestKeeper | None,
) -> int:
    """Load the checkpoint, if there is one; return the step to go on from."""
    checkpoints, on_step = fitting.plan.checkpoints, fitting.plan.on_step
    held = None if checkpoints is None else checkpoints.load()
    if held is None:
        return 0
    fitting.warm(next(batches(0)))
    fitting.engine.load_state(held.state)
    result = fitting.result
    result.num_steps = held.step
    result.losses = [float(loss) for loss in held.record["losses"]]
    result.validation = [(int(step), float(value)) for step, value in held.record["validation"]]
    result.best_step = held.record["best_step"]
    if keeper is not None:
        keeper.resume(held.best, result)
    if on_step is not None:
        for step, loss in enumerate(result.losses):
            on_step(StepRecord(step + 1, loss, math.nan, fitting.plan.schedule(step)))
    return held.step


def _save(fitting: _Fitting, keeper: _BestKeeper | None, checkpoints: CheckpointFile) -> None:
    """Gather on every rank, write on rank 0."""
    result = fitting.result
    checkpoint = Checkpoint(
        step=result.num_steps,
        record={
            "losses": result.losses,
            "validation": result.validation,
            "best_step": result.best_step,
        },
        state=fitting.engine.state(),
        best=None if keeper is None else keeper.best,
    )
    fitting.engine.world.on_main("checkpoint", lambda: checkpoints.save(checkpoint))


class _BestKeeper:
    """Keeps the best validated parameters and says when to stop."""

    def __init__(self, rule: EarlyStopping, engine: TrainEngine) -> None:
        self._rule, self._engine = rule, engine
        self.best: dict[str, torch.Tensor] | None = None
        self._bad_checks = 0

    @property
    def is_done(self) -> bool:
        """Whether patience has run out."""
        return self._bad_checks >= self._rule.patience

    def should_stop(self, step: int, result: FitResult) -> bool:
        """Validate when it is time; record the score. Ranks go by rank 0's."""
        if step % self._rule.every_steps:
            return False
        own = torch.tensor([self._rule.evaluate()], dtype=torch.double)
        score = float(self._engine.world.broadcast(own, source=0)[0])
        if not result.validation or score < min(value for _, value in result.validation):
            self.best = self._engine.parameters()
            self._bad_checks, result.best_step = 0, step
        else:
            self._bad_checks += 1
        result.validation.append((step, score))
        return self.is_done

    def resume(self, best: Mapping[str, torch.Tensor] | None, result: FitResult) -> None:
        """Take up where a checkpoint was."""
        self.best = None if best is None else dict(best)
        self._bad_checks = sum(step > (result.best_step or 0) for step, _ in result.validation)

    def restore(self) -> None:
        """Put the best parameters back."""
        if self.best is not None:
            self._engine.load_parameters(self.best)
