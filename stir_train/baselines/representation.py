"""A control vector from right and wrong solutions (representation engineering, arXiv 2504.19483).

The paper's: last-token states of positives and negatives, one block, added at all positions, the
mean difference or its first principal component scaled to the mean difference's norm, and a grid of
strengths on both sides of zero. Ours: negatives are the model's own wrong completions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stir_train.baselines.editing import adding
from stir_train.baselines.interface import EDITS, AnsweringContext, HarvestData, Parameters, Setting
from stir_train.baselines.pairs import right_and_wrong
from stir_train.baselines.reading import block_outputs, read
from stir_train.types.rollout import Prompt, Rollout

STRENGTHS = (-4.0, -1.0, 1.0, 4.0, 16.0)


class RepresentationControl:
    """One vector at every token."""

    name = "representation-control"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Mean and first principal component of right-minus-wrong, per block."""
        pairs = right_and_wrong(harvest)
        everything = [rollout for right, wrong in pairs for rollout in (*right, *wrong)]
        modules = block_outputs(harvest.loaded, harvest.blocks)
        lasts: dict[str, list[Tensor]] = {name: [] for name in modules}
        for reading in read(harvest.loaded, everything, modules):
            for name in modules:
                lasts[name].append(reading.lasts(name))
        parameters: dict[str, Tensor] = {}
        for block in harvest.blocks:
            rows = iter(torch.cat(lasts[f"block {block}"]))
            differences = []
            for right, wrong in pairs:
                positive = torch.stack([next(rows) for _ in right]).mean(0)
                negative = torch.stack([next(rows) for _ in wrong]).mean(0)
                differences.append(positive - negative)
            parameters |= {f"{kind} {block}": v for kind, v in _vectors(differences).items()}
        return parameters

    def settings(self, blocks: Sequence[int]) -> list[Setting]:
        """Both vectors, at every block and strength."""
        return [
            {"vector": kind, "block": block, "strength": strength}
            for kind in ("mean", "pca")
            for block in blocks
            for strength in STRENGTHS
        ]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, the vector added at all positions, the prompt's included."""
        vector = parameters[f"{setting['vector']} {setting['block']}"] * float(setting["strength"])
        edit = adding(answering.loaded, int(setting["block"]), vector, to_prompt=True)
        return answering.answer(prompts, edit=edit)


def _vectors(differences: Sequence[Tensor]) -> dict[str, Tensor]:
    stacked = torch.stack(list(differences))
    mean = stacked.mean(0)
    _, _, directions = torch.linalg.svd(stacked, full_matrices=False)
    first = directions[0] * torch.sign(directions[0] @ mean)
    return {"mean": mean, "pca": first * mean.norm()}
