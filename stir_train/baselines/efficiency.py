"""Self-guided efficiency steering (arXiv 2506.15647).

The paper's: of problems solved at least twice, the shortest right completion against the longest; the
difference of mean states, added at the last token of every decoding step, block and strength tuned.
Ours: states are averaged over all completion tokens (the paper does not say which).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stir_train.baselines.editing import adding
from stir_train.baselines.interface import EDITS, AnsweringContext, HarvestData, Parameters, Setting
from stir_train.baselines.pairs import shortest_and_longest_right
from stir_train.baselines.reading import block_outputs, read
from stir_train.types.rollout import Prompt, Rollout

STRENGTHS = (0.5, 1.0, 2.0, 4.0)


class EfficiencySteering:
    """Short minus long, at every decoded token."""

    name = "efficiency-steering"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """The vector of every block."""
        pairs = shortest_and_longest_right(harvest)
        modules = block_outputs(harvest.loaded, harvest.blocks)
        sums = {name: torch.zeros(2, harvest.loaded.identity.width) for name in modules}
        for side in (0, 1):
            for reading in read(harvest.loaded, [pair[side] for pair in pairs], modules):
                for name in modules:
                    sums[name][side] += reading.means(name).sum(0)
        return {name: (total[0] - total[1]) / len(pairs) for name, total in sums.items()}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:
        """Every block and strength."""
        return [{"block": block, "strength": s} for block in blocks for s in STRENGTHS]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, the vector added at every decoded token."""
        block = int(setting["block"])
        vector = parameters[f"block {block}"] * float(setting["strength"])
        return answering.answer(
            prompts, edit=adding(answering.loaded, block, vector, to_prompt=False)
        )
