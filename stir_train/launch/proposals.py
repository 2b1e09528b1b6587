"""Settings that would spend less time, by what this machine was measured to do. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stir_train.config.run import RunConfig
from stir_train.launch.costs import Rates, chunk_seconds, rollout_seconds, stage_costs
from stir_train.launch.estimate import ModelShape

BUDGET_STEP = 64
"""Token budgets are proposed in multiples of this."""
WORTH_SAYING = 0.05
"""Share of a run's time that a proposal must spare."""
CHUNK_SECONDS, CHUNK_OVERHEAD = 60.0, 1.15
"""What a chunk should take, and how much longer a run may take for it."""


@dataclass(frozen=True)
class ChunkCost:
    """What chunks of a size mean for the rollouts.

    Attributes:
        num_completions: `generation.chunk_completions`.
        seconds: Of a full chunk, which a kill loses.
        slowdown: Time of all rollouts over that with the size that is set.
    """

    num_completions: int
    seconds: float
    slowdown: float


def chunk_costs(config: RunConfig, rates: Rates) -> tuple[ChunkCost, ChunkCost]:
    """The chunk size that is set, and the one to propose; the same where none is better.

    The proposal halves the size until a chunk takes about a minute, or smaller batches would cost too much.
    """
    whole = rollout_seconds(config, rates)
    held = proposed = ChunkCost(
        config.generation.chunk_completions, chunk_seconds(config, rates), 1.0
    )
    size = held.num_completions
    while proposed.seconds > CHUNK_SECONDS:
        size //= 2
        if size < max(1, config.rollout.num_samples):
            break
        limits = config.generation.model_copy(update={"chunk_completions": size})
        smaller = config.model_copy(update={"generation": limits})
        slowdown = rollout_seconds(smaller, rates) / whole
        if slowdown > CHUNK_OVERHEAD:
            break
        seconds = chunk_seconds(smaller, rates)
        if seconds < proposed.seconds:  # shares of few prompts may be as small already
            proposed = ChunkCost(size, seconds, slowdown)
    return held, proposed


@dataclass(frozen=True)
class BudgetCost:
    """What a smaller token budget would spare.

    Attributes:
        max_new_tokens: `generation.max_new_tokens`, which hardly an answer that ends by itself exceeds.
        saved_share: Of the hours of all stages.
    """

    max_new_tokens: int
    saved_share: float


def smaller_budget(
    config: RunConfig, shape: ModelShape, rates: Rates, *, num_processes: int = 1
) -> BudgetCost | None:
    """The token budget to propose, if it spares more than a moment; every chunk waits for its longest answer."""
    budget = math.ceil(rates.long_answer_tokens / BUDGET_STEP) * BUDGET_STEP
    if budget >= config.generation.max_new_tokens:
        return None
    limits = config.generation.model_copy(update={"max_new_tokens": budget})
    smaller = config.model_copy(update={"generation": limits})

    def hours(of: RunConfig) -> float:
        return sum(c.hours for c in stage_costs(of, shape, rates, num_processes=num_processes))

    saved = 1 - hours(smaller) / hours(config)
    return BudgetCost(budget, saved) if saved >= WORTH_SAYING else None
