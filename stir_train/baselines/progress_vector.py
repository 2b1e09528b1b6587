"""Overclocking with the thinking-progress vector (TPV, arXiv 2506.07240).

The paper's: ``w`` regresses the relative position of a token in the completion on its final hidden
state, in closed form and without intercept; ``strength * w``, not normalised, is added after the last
norm at every decoded token. That is a constant bias ``strength * W_U w`` on the logits, which is how
it is done here. Ours: the strengths of the grid, and completions of harvest problems only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stir_train.baselines.editing import biased
from stir_train.baselines.interface import EDITS, AnsweringContext, HarvestData, Parameters, Setting
from stir_train.baselines.reading import read
from stir_train.types.rollout import Prompt, Rollout

RIDGE = 1e-10
STRENGTHS = (-10.0, -3.0, 3.0, 10.0, 30.0, 100.0)


class ProgressVector:
    """Towards the end, at every token."""

    name = "progress-vector"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """The regression, and the bias that it comes to."""
        head = harvest.loaded.model.get_output_embeddings()
        assert head is not None, "the engine has asked for it"
        width = harvest.loaded.identity.width
        gram = torch.zeros(width, width, dtype=torch.double)
        product = torch.zeros(width, dtype=torch.double)
        rollouts = [item.rollout for item in harvest.graded]
        for reading in read(harvest.loaded, rollouts, {}, {"final": head}):
            states = reading.found["final"][reading.response.to(reading.found["final"].device)]
            progress = torch.cat(
                [torch.arange(1, len(r.token_ids) + 1) / len(r.token_ids) for r in reading.rollouts]
            )
            found = states.double().cpu()
            gram += found.T @ found
            product += found.T @ progress.double()
        w = torch.linalg.solve(gram + RIDGE * torch.eye(width, dtype=torch.double), product)
        weight = head.weight.detach().double().cpu()
        return {"probe": w.float(), "bias": (weight @ w).float()}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """Every strength."""
        return [{"strength": strength} for strength in STRENGTHS]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy under the biased logits."""
        bias = float(setting["strength"]) * parameters["bias"]
        return answering.answer(prompts, edit=biased(answering.loaded, bias))
