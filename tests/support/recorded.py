"""Recorded rollouts by hand, and how their gradients are taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stir_train.directions.gradients import (
    GradientSettings,
)
from stir_train.generation.backend import SamplingParams
from stir_train.types.rollout import Grade, GradedRollout, Rollout
from tests.support import tiny_models

TEMPERATURE = 0.6


SAMPLING = SamplingParams(99, temperature=TEMPERATURE)


BLOCKS = (1, 2)


MAX_POINTS = 3


SETTINGS = GradientSettings(BLOCKS, SAMPLING, MAX_POINTS)


def rollout(
    name: str,
    prompt: Sequence[int],
    tokens: Sequence[int],
    points: tuple[int, ...] = (),
    sample: int = 0,
) -> Rollout:
    return Rollout(name, sample, tuple(prompt), tuple(tokens), (), points, "stop")


def some_rollouts() -> list[Rollout]:
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(2, tiny_models.VOCABULARY, (count,), generator=generator).tolist()

    shared = ids(5)
    return [
        rollout("a", shared, ids(7), (2, 4)),
        rollout("b", ids(5), ids(9), (1,)),
        rollout("a", shared, ids(14), (0, 3, 6, 9, 13), sample=1),
        rollout("c", ids(1), ids(3)),
        rollout("d", ids(12), ids(20), (5, 19)),
        rollout("e", ids(5), ids(1)),
    ]


def graded(prompt_id: str, sample: int, reward: float, tokens: int = 4) -> GradedRollout:
    one = rollout(prompt_id, (1,), (2,) * tokens, sample=sample)
    return GradedRollout(one, "", Grade(reward > 0.5, "", ""), reward)
