"""Training examples for the value head: a state, and how its rollout ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.types.rollout import GradedRollout
from stir_train.types.trajectory import CapturedStates


@dataclass(frozen=True)
class ValueExamples:
    """States of one block with their outcomes.

    Attributes:
        states: ``Float[R D]``.
        points: ``Int[R]``, 1-based.
        correct: ``Float[R]``, 0 or 1.
        log_tokens_left: ``Float[R]``, log of the completion tokens after the state.
        tokens_so_far: ``Float[R]``, for the length-only baseline.
        prompt: ``Int[R]``, index of the prompt; a split never cuts through one.
    """

    states: Float[Tensor, "R D"]
    points: Int[Tensor, "R"]
    correct: Float[Tensor, "R"]
    log_tokens_left: Float[Tensor, "R"]
    tokens_so_far: Float[Tensor, "R"]
    prompt: Int[Tensor, "R"]

    def select(self, index: Tensor) -> ValueExamples:
        """The examples at ``index`` (integers or a mask)."""
        return ValueExamples(
            self.states[index],
            self.points[index],
            self.correct[index],
            self.log_tokens_left[index],
            self.tokens_so_far[index],
            self.prompt[index],
        )

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
    rollouts: Sequence[GradedRollout], captured: CapturedStates, block: int
) -> ValueExamples:
    """Join captured states with the outcome of their rollouts."""
    outcome = {(g.rollout.prompt_id, g.rollout.sample): g for g in rollouts}
    prompts = {p: i for i, p in enumerate(dict.fromkeys(g.rollout.prompt_id for g in rollouts))}
    joined = [outcome[label.prompt_id, label.sample] for label in captured.labels]
    so_far = [label.token_index + 1 for label in captured.labels]
    totals = [len(graded.rollout.token_ids) for graded in joined]
    left = torch.tensor([float(t - s) for t, s in zip(totals, so_far, strict=True)])
    return ValueExamples(
        states=captured.at_block(block),
        points=torch.tensor([label.point for label in captured.labels], dtype=torch.long),
        correct=torch.tensor([float(graded.grade.correct) for graded in joined]),
        log_tokens_left=left.clamp_min(1).log(),
        tokens_so_far=torch.tensor([float(s) for s in so_far]),
        prompt=torch.tensor([prompts[label.prompt_id] for label in captured.labels]),
    )
