"""Activation-steered compression, its strength from a KL budget (ASC, arXiv 2507.04742).

The paper's: the difference of last-token states of concise and verbose solutions, added at every
decoding step; the strength is the largest whose next-token distributions stay within a KL budget.
Ours: concise and verbose are the model's own shortest and longest right completions (the paper asks
another model for concise ones), and the strength is found by bisection on the measured KL, since the
paper's closed form is not given and a second-order one is far off at the strengths that matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stir_train.baselines.editing import adding
from stir_train.baselines.interface import EDITS, AnsweringContext, HarvestData, Parameters, Setting
from stir_train.baselines.pairs import shortest_and_longest_right
from stir_train.baselines.reading import Reading, block_outputs, read
from stir_train.models.hooks import block_hooks
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout

BUDGETS = (0.001, 0.01, 0.05, 0.2)
"""Nats a token."""
NUM_CALIBRATION = 32
MOST_STRENGTH, HALVINGS = 64.0, 16


class SteeredCompression:
    """Concise minus verbose, as strong as a KL budget allows."""

    name = "steered-compression"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """The vector of every block and its strength for every budget."""
        pairs = shortest_and_longest_right(harvest)
        modules = block_outputs(harvest.loaded, harvest.blocks)
        parameters: dict[str, Tensor] = {}
        sides = []
        for side in (0, 1):
            lasts: dict[str, list[Tensor]] = {name: [] for name in modules}
            for reading in read(harvest.loaded, [pair[side] for pair in pairs], modules):
                for name in modules:
                    lasts[name].append(reading.lasts(name))
            sides.append({name: torch.cat(found).mean(0) for name, found in lasts.items()})
        calibration = [pair[1] for pair in pairs[:NUM_CALIBRATION]]
        plain = list(read(harvest.loaded, calibration, {}))
        for block in harvest.blocks:
            vector = sides[0][f"block {block}"] - sides[1][f"block {block}"]
            parameters[f"block {block}"] = vector
            for budget in BUDGETS:
                strength = strength_within(budget, harvest.loaded, plain, block, vector)
                parameters[f"strength {block} {budget:g}"] = torch.tensor(strength)
        return parameters

    def settings(self, blocks: Sequence[int]) -> list[Setting]:
        """The grid: every captured block with every budget of KL divergence, in nats."""
        return [{"block": block, "kl": budget} for block in blocks for budget in BUDGETS]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, the vector added at every decoded token."""
        block, budget = int(setting["block"]), float(setting["kl"])
        vector = parameters[f"block {block}"] * parameters[f"strength {block} {budget:g}"]
        return answering.answer(
            prompts, edit=adding(answering.loaded, block, vector, to_prompt=False)
        )


def strength_within(
    budget: float, loaded: LoadedModel, plain: Sequence[Reading], block: int, vector: Tensor
) -> float:
    """A strength at which the mean KL is the budget, or as near below as halving comes."""
    low, high = 0.0, MOST_STRENGTH
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if mean_kl(loaded, plain, block, middle * vector) <= budget:
            low = middle
        else:
            high = middle
    return low


def mean_kl(loaded: LoadedModel, plain: Sequence[Reading], block: int, vector: Tensor) -> float:
    """KL (nats) from steered to plain next-token distributions, mean over completion tokens.

    Args:
        loaded: The frozen model.
        plain: Completions as they were read without the vector.
        block: Where the vector is added, at every position.
        vector: ``Float[D]``.
    """
    total, count = 0.0, 0
    rollouts = [rollout for reading in plain for rollout in reading.rollouts]
    with block_hooks(loaded.blocks, {block: lambda states: states + vector.to(states)}):
        for base, moved in zip(plain, read(loaded, rollouts, {}), strict=True):
            counted = base.response.to(base.logits.device)
            p = base.logits[counted].float().log_softmax(-1)
            q = moved.logits[counted].float().log_softmax(-1)
            total += float((p.exp() * (p - q)).sum())
            count += int(counted.sum())
    return total / count
