"""What the value heads of a run learn from: sampled rollouts, and what interventions caused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from stir_train.stores.gathered import GatheredStates, StateMatrix
from stir_train.stores.interventions import InterventionData
from stir_train.stores.rollouts import RolloutStore
from stir_train.stores.states import LazyStates, StateLabels, StateStore
from stir_train.types.rollout import RolloutOutcome
from stir_train.types.steering import UNSTEERED, ControlBasis
from stir_train.value.targets import (
    ExampleInputs,
    ValueExamples,
    build_examples,
    build_intervened,
)


@dataclass(frozen=True)
class ObservedRollouts:
    """Sampled rollouts of the harvest split, without their tokens.

    Attributes:
        outcomes: How each ended.
        labels: Of their states.
        states: These states, on disk.
    """

    outcomes: list[RolloutOutcome]
    labels: StateLabels
    states: LazyStates

    @staticmethod
    def read(rollouts: RolloutStore) -> ObservedRollouts:
        """The rollouts of a finished rollout stage; every sampled problem is among them."""
        states = StateStore(rollouts.stage)
        return ObservedRollouts(rollouts.outcomes(), states.labels(), states.lazy())


def read_blocks(captured: Sequence[int], block: int, *, reads_below: bool) -> tuple[int, ...]:
    """The blocks that a block's head reads: itself, and the captured ones below, which ran before it.

    Args:
        captured: The captured blocks, ascending.
        block: The head's own.
        reads_below: Whether it reads those below.
    """
    return tuple(b for b in captured if b <= block) if reads_below else (block,)


def block_examples(
    states: StateMatrix,
    observed: ObservedRollouts,
    data: InterventionData | None,
    basis: ControlBasis,
    reads: Sequence[int],
) -> tuple[ValueExamples, ValueExamples | None]:
    """What a block's head learns from: states of sampled rollouts, and those of interventions.

    A state that was reached by impulses counts for the block that they were made in.

    Args:
        states: The states of ``observed``, then those of ``data``, gathered.
        observed: The sampled rollouts.
        data: What was tried, or None if nothing was.
        basis: What was injected.
        reads: The blocks that the head reads, neighbours among the captured ones; the last is its own.
    """
    width, block = observed.states.width, reads[-1]
    first = observed.states.blocks.index(reads[0])
    columns = slice(first * width, (first + len(reads)) * width)
    inputs = ExampleInputs(states, columns, basis.directions)
    names = dict.fromkeys(outcome.prompt_id for outcome in observed.outcomes)
    prompts = {name: number for number, name in enumerate(names)}
    from_rollouts = build_examples(inputs, observed.outcomes, observed.labels, prompts)
    if data is None:
        return from_rollouts, None
    pool = len(observed.states)
    steered = data.steered()
    mine = (steered == UNSTEERED) | (steered == block)
    reached = build_examples(inputs, data.outcomes, data.labels, prompts, first_row=pool)
    caused = build_intervened(inputs, data.trials, prompts, block=block, first_row=pool)
    return from_rollouts, ValueExamples.concatenate([reached.select(mine), caused])


class HeadData:
    """What the heads of a run learn from, its states gathered once however many heads are trained.

    Attributes:
        states: The states of sampled rollouts, then those of interventions.
    """

    def __init__(self, rollouts: RolloutStore, scratch: Path, *, reads_below: bool) -> None:
        """Read nothing yet.

        Args:
            rollouts: Of a finished rollout stage.
            scratch: Where scratch files may lie.
            reads_below: Whether heads read the captured blocks below their own.
        """
        self.states = GatheredStates(scratch)
        self._rollouts, self._reads_below = rollouts, reads_below
        self._num_pooled = 0

    @cached_property
    def observed(self) -> ObservedRollouts:
        """The sampled rollouts."""
        return ObservedRollouts.read(self._rollouts)

    def reads(self, block: int) -> tuple[int, ...]:
        """The blocks that a block's head reads; its own comes last."""
        return read_blocks(self.observed.states.blocks, block, reads_below=self._reads_below)

    def missing(self, data: InterventionData | None) -> Iterator[LazyStates]:
        """States that are not among ``states`` yet, in the order in which to add them.

        Args:
            data: What was tried; what was among it before comes first, as validation goes on.
        """
        if not self.states.num_parts:
            yield self.observed.states
        new = () if data is None else data.states.parts[self._num_pooled :]
        if new:
            self._num_pooled += len(new)
            yield LazyStates(new)

    def examples(
        self, data: InterventionData | None, basis: ControlBasis, block: int
    ) -> tuple[ValueExamples, ValueExamples | None]:
        """As `block_examples` makes them, once nothing is missing."""
        return block_examples(self.states, self.observed, data, basis, self.reads(block))

    def split(
        self,
        data: InterventionData | None,
        basis: ControlBasis,
        block: int,
        *,
        fraction: float,
        seed: int,
    ) -> tuple[ValueExamples, ValueExamples]:
        """Training and validation examples; ``fraction`` of the prompts validate."""
        parts = [part for part in self.examples(data, basis, block) if part is not None]
        generator = torch.Generator().manual_seed(seed)
        return ValueExamples.concatenate(parts).split_by_prompt(fraction, generator)
