"""Training examples for the value head: a state, and how its rollout ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.stores.gathered import StateMatrix
from stir_train.stores.states import StateLabels
from stir_train.types.rollout import RolloutOutcome
from stir_train.types.steering import Intervention

NO_ENTRY = -1
"""Stands for the basis entry of an example that nothing was added to."""
PIECE_BYTES = 1 << 26
"""Inputs that are in memory at a time where all examples are gone through (64 MiB): a head takes it several times."""


@dataclass(frozen=True)
class ExampleInputs:
    """Where the inputs of one block's examples are read from.

    Attributes:
        states: One row a state, the captured blocks side by side.
        columns: The columns of the ``W`` inputs of the blocks that the head reads; its own come last.
        directions: ``Float[K D]``, what impulses are multiples of.
    """

    states: StateMatrix
    columns: slice
    directions: Float[Tensor, "K D"]

    @property
    def width(self) -> int:
        """``W``."""
        return int(self.columns.stop - self.columns.start)


@dataclass(frozen=True)
class ValueBatch:
    """Examples with their inputs in memory.

    Attributes:
        states: ``Float[B W]``.
        impulses: ``Float[B D]``, what was added to its own block's state there; zero for nothing.
        points, correct, log_tokens_left, prompt: As in `ValueExamples`.
    """

    states: Float[Tensor, "B W"]
    impulses: Float[Tensor, "B D"]
    points: Int[Tensor, "B"]
    correct: Float[Tensor, "B"]
    log_tokens_left: Float[Tensor, "B"]
    prompt: Int[Tensor, "B"]


@dataclass(frozen=True)
class ValueExamples:
    """States with their outcomes, as one block's head reads them; the states stay where they are.

    Attributes:
        inputs: Where states and impulses are read from.
        row: ``Int[R]``, of ``inputs.states``.
        entry: ``Int[R]``, of ``inputs.directions``, or ``NO_ENTRY``.
        strength: ``Float[R]``, the multiplier of that entry's direction.
        points: ``Int[R]``, 1-based.
        correct: ``Float[R]``, 0 or 1.
        log_tokens_left: ``Float[R]``, log of the completion tokens after the state.
        tokens_so_far: ``Float[R]``, for the length-only baseline.
        prompt: ``Int[R]``, index of the prompt; a split never cuts through one.
    """

    inputs: ExampleInputs
    row: Int[Tensor, "R"]
    entry: Int[Tensor, "R"]
    strength: Float[Tensor, "R"]
    points: Int[Tensor, "R"]
    correct: Float[Tensor, "R"]
    log_tokens_left: Float[Tensor, "R"]
    tokens_so_far: Float[Tensor, "R"]
    prompt: Int[Tensor, "R"]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.row)

    @staticmethod
    def concatenate(parts: Sequence[ValueExamples]) -> ValueExamples:
        """Join examples of the same inputs, in order."""
        assert all(part.inputs is parts[0].inputs for part in parts), "inputs differ"
        return ValueExamples(
            parts[0].inputs,
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in _columns()},
        )

    def select(self, index: Tensor) -> ValueExamples:
        """The examples at ``index`` (integers or a mask)."""
        return ValueExamples(
            self.inputs, **{name: getattr(self, name)[index] for name in _columns()}
        )

    def sample(self, num_examples: int, generator: torch.Generator) -> ValueExamples:
        """At most so many examples, drawn without replacement, in the order in which they were."""
        if len(self) <= num_examples:
            return self
        drawn = torch.randperm(len(self), generator=generator)[:num_examples]
        return self.select(drawn.sort().values)

    def split_by_prompt(
        self, fraction: float, generator: torch.Generator
    ) -> tuple[ValueExamples, ValueExamples]:
        """Training and validation examples; ``fraction`` of the prompts validate."""
        prompts = self.prompt.unique()
        order = prompts[torch.randperm(len(prompts), generator=generator)]
        held_out = order[: max(1, round(fraction * len(prompts)))]
        validation = torch.isin(self.prompt, held_out)
        return self.select(~validation), self.select(validation)

    def batch(self, index: Int[Tensor, "B"] | None = None) -> ValueBatch:
        """Read the inputs of the examples at ``index``; None takes all."""
        chosen = self if index is None else self.select(index)
        directions = self.inputs.directions
        impulses = torch.zeros(len(chosen), directions.shape[1])
        made = chosen.entry != NO_ENTRY
        impulses[made] = chosen.strength[made][:, None] * directions[chosen.entry[made]]
        return ValueBatch(
            states=self.inputs.states.rows(chosen.row, self.inputs.columns),
            impulses=impulses,
            points=chosen.points,
            correct=chosen.correct,
            log_tokens_left=chosen.log_tokens_left,
            prompt=chosen.prompt,
        )

    def pieces(self) -> Iterator[ValueBatch]:
        """All examples in order, as many at a time as memory is set aside for."""
        size = max(1, PIECE_BYTES // (torch.float32.itemsize * self.inputs.width))
        for index in torch.arange(len(self)).split(size):
            yield self.batch(index)


def build_examples(
    inputs: ExampleInputs,
    outcomes: Sequence[RolloutOutcome],
    labels: StateLabels,
    prompts: Mapping[str, int],
    *,
    first_row: int = 0,
) -> ValueExamples:
    """Join captured states with the outcome of their rollouts.

    Args:
        inputs: Where the states are.
        outcomes: Of the rollouts that the labels number.
        labels: Of the states, which are the rows from ``first_row`` on.
        prompts: Numbers the problems.
        first_row: Of ``inputs.states``.
    """
    owner, count = labels.rollout, len(labels)
    num_tokens = torch.tensor([outcome.num_tokens for outcome in outcomes], dtype=torch.long)
    correct = torch.tensor([float(outcome.correct) for outcome in outcomes])
    prompt = torch.tensor([prompts[outcome.prompt_id] for outcome in outcomes], dtype=torch.long)
    so_far = labels.token_index + 1
    return ValueExamples(
        inputs=inputs,
        row=torch.arange(first_row, first_row + count),
        entry=torch.full((count,), NO_ENTRY),
        strength=torch.zeros(count),
        points=labels.point,
        correct=correct[owner],
        log_tokens_left=(num_tokens[owner] - so_far).float().clamp_min(1).log(),
        tokens_so_far=so_far.float(),
        prompt=prompt[owner],
    )


def build_intervened(
    inputs: ExampleInputs,
    trials: Sequence[Intervention],
    prompts: Mapping[str, int],
    *,
    block: int,
    first_row: int = 0,
) -> ValueExamples:
    """States with the impulses that trials added there, and the outcome they caused.

    Args:
        inputs: Where the pool of states that trials started from is, and what was injected.
        trials: Any; those of other blocks are left out.
        prompts: Numbers the problems.
        block: The head's own.
        first_row: Row of ``inputs.states`` where the pool begins.
    """
    here = [trial for trial in trials if trial.block == block]
    left = torch.tensor([float(trial.tokens - trial.token_index - 1) for trial in here])
    return ValueExamples(
        inputs=inputs,
        row=first_row + torch.tensor([trial.state for trial in here], dtype=torch.long),
        entry=torch.tensor([trial.entry for trial in here], dtype=torch.long),
        strength=torch.tensor([trial.strength for trial in here]),
        points=torch.tensor([trial.point for trial in here], dtype=torch.long),
        correct=torch.tensor([float(trial.correct) for trial in here]),
        log_tokens_left=left.clamp_min(1).log(),
        tokens_so_far=torch.tensor([trial.token_index + 1.0 for trial in here]),
        prompt=torch.tensor([prompts[trial.prompt_id] for trial in here], dtype=torch.long),
    )


def _columns() -> list[str]:
    return [field.name for field in fields(ValueExamples) if field.name != "inputs"]
