"""Steering against reflection and transition steps (SEAL, arXiv 2504.07986).

The paper's: steps are labelled by their first words and by phrases; the vector is the mean state at
delimiters that open reflection or transition steps minus that of execution steps, and is subtracted
at every delimiter, coefficient 1. Ours: block and coefficient are tuned, and steps count outside
``<think>`` too, since not every model writes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stir_train.baselines.interface import (
    STEERS,
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.generation.fixed import FixedVector
from stir_train.types.rollout import Prompt, Rollout

REFLECTION = (
    "verify",
    "make sure",
    "hold on",
    "think again",
    "'s correct",
    "'s incorrect",
    "let me check",
    "seems right",
)
TRANSITION = (
    "think differently",
    "another way",
    "another approach",
    "another method",
    "another solution",
    "another strategy",
    "another technique",
)
COEFFICIENTS = (0.5, 1.0, 2.0, 4.0)


def is_execution(step: str) -> bool:
    """Whether a step neither reflects nor changes course, by its words."""
    text = step.strip().lower()
    if text.startswith(("wait", "alternatively")):
        return False
    return not any(phrase in text for phrase in (*REFLECTION, *TRANSITION))


class Seal:
    """Away from reflection and transition, at every control point."""

    name = "seal"
    needs = STEERS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """The vector of every block, from the states that the harvest captured."""
        rollouts = {(g.rollout.prompt_id, g.rollout.sample): g.rollout for g in harvest.graded}
        labels: list[bool] = []
        for label in harvest.captured.labels:
            rollout = rollouts[label.prompt_id, label.sample]
            points = [*rollout.control_points, len(rollout.token_ids) - 1]
            step = rollout.token_ids[label.token_index + 1 : points[label.point] + 1]
            labels.append(is_execution(harvest.loaded.decode(step)))
        execution = torch.tensor(labels, dtype=torch.bool)
        if bool(execution.all()) or not bool(execution.any()):
            raise NotApplicable("no steps begin as reflection or transition steps do")
        return {
            f"block {block}": harvest.captured.at_block(block)[~execution].mean(0)
            - harvest.captured.at_block(block)[execution].mean(0)
            for block in harvest.blocks
        }

    def settings(self, blocks: Sequence[int]) -> list[Setting]:
        """Every block and coefficient."""
        return [{"block": block, "coefficient": c} for block in blocks for c in COEFFICIENTS]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, the vector subtracted at every control point."""
        block = int(setting["block"])
        vector = -float(setting["coefficient"]) * parameters[f"block {block}"]
        return answering.answer(prompts, controller=FixedVector("control_point", block, vector))
