"""Training examples for the value head: a state, and how its rollout ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import ControlBasis, Intervention
from stir_train.types.trajectory import CapturedStates


@dataclass(frozen=True)
class ValueExamples:
    """States with their outcomes, as one block's head reads them.

    Attributes:
        states: ``Float[R W]``, of the blocks that the head reads, side by side; its own comes last.
        points: ``Int[R]``, 1-based.
        correct: ``Float[R]``, 0 or 1.
        log_tokens_left: ``Float[R]``, log of the completion tokens after the state.
        tokens_so_far: ``Float[R]``, for the length-only baseline.
        prompt: ``Int[R]``, index of the prompt; a split never cuts through one.
        impulses: ``Float[R D]``, what was added to its own block's state there; zero for nothing.
    """

    states: Float[Tensor, "R W"]
    points: Int[Tensor, "R"]
    correct: Float[Tensor, "R"]
    log_tokens_left: Float[Tensor, "R"]
    tokens_so_far: Float[Tensor, "R"]
    prompt: Int[Tensor, "R"]
    impulses: Float[Tensor, "R D"]

    @staticmethod
    def concatenate(parts: Sequence[ValueExamples]) -> ValueExamples:
        """Join examples, in order."""
        names = [field.name for field in fields(ValueExamples)]
        return ValueExamples(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        )

    def select(self, index: Tensor) -> ValueExamples:
        """The examples at ``index`` (integers or a mask)."""
        return ValueExamples(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def split_by_prompt(
        self, fraction: float, generator: torch.Generator
    ) -> tuple[ValueExamples, ValueExamples]:
        """Training and validation examples; ``fraction`` of the prompts validate."""
        prompts = self.prompt.unique()
        order = prompts[torch.randperm(len(prompts), generator=generator)]
        held_out = order[: max(1, round(fraction * len(prompts)))]
        validation = torch.isin(self.prompt, held_out)
        return self.select(~validation), self.select(validation)


def build_examples(
    rollouts: Sequence[GradedRollout],
    captured: CapturedStates,
    reads: Sequence[int],
    prompts: Mapping[str, int],
) -> ValueExamples:
    """Join captured states with the outcome of their rollouts.

    Args:
        rollouts: Graded.
        captured: Their states.
        reads: The blocks that the head reads.
        prompts: Numbers the problems.
    """
    outcome = {(g.rollout.prompt_id, g.rollout.sample): g for g in rollouts}
    joined = [outcome[label.prompt_id, label.sample] for label in captured.labels]
    so_far = [label.token_index + 1 for label in captured.labels]
    totals = [len(graded.rollout.token_ids) for graded in joined]
    left = torch.tensor([float(t - s) for t, s in zip(totals, so_far, strict=True)])
    return ValueExamples(
        states=captured.side_by_side(reads),
        points=torch.tensor([label.point for label in captured.labels], dtype=torch.long),
        correct=torch.tensor([float(graded.grade.correct) for graded in joined]),
        log_tokens_left=left.clamp_min(1).log(),
        tokens_so_far=torch.tensor([float(s) for s in so_far]),
        prompt=torch.tensor([prompts[label.prompt_id] for label in captured.labels]),
        impulses=torch.zeros_like(captured.at_block(reads[-1])),
    )


def build_intervened(
    trials: Sequence[Intervention],
    captured: CapturedStates,
    basis: ControlBasis,
    reads: Sequence[int],
    prompts: Mapping[str, int],
) -> ValueExamples:
    """States with the impulses that trials added there, and the outcome they caused.

    Args:
        trials: Any; those of other blocks than the head's own are left out.
        captured: The pool of states that trials started from.
        basis: What was injected.
        reads: The blocks that the head reads; the last is its own.
        prompts: Numbers the problems.
    """
    here = [trial for trial in trials if trial.block == reads[-1]]
    entries = torch.tensor([trial.entry for trial in here], dtype=torch.long)
    rows = torch.tensor([trial.state for trial in here], dtype=torch.long)
    strengths = torch.tensor([trial.strength for trial in here])
    left = torch.tensor([float(trial.tokens - trial.token_index - 1) for trial in here])
    return ValueExamples(
        states=captured.side_by_side(reads)[rows],
        points=torch.tensor([trial.point for trial in here], dtype=torch.long),
        correct=torch.tensor([float(trial.correct) for trial in here]),
        log_tokens_left=left.clamp_min(1).log(),
        tokens_so_far=torch.tensor([trial.token_index + 1.0 for trial in here]),
        prompt=torch.tensor([prompts[trial.prompt_id] for trial in here], dtype=torch.long),
        impulses=strengths[:, None] * basis.directions[entries],
    )
