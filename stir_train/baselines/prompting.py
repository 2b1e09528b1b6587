"""A sentence more in the prompt, which beat steering where the two were compared (AxBench, arXiv 2501.17148).

The papers': "Let's think step by step." (arXiv 2205.11916); "Be concise." (arXiv 2401.05618) and a draft
of few words a step (arXiv 2502.18600), shortened; a stated budget of tokens (TALE, arXiv 2412.18547). Ours:
the sentence stands behind the question, inside the task's template and the chat template; of several wordings
the tune split chooses; the budget is a share of the mean length of right completions of the harvest split, not
searched or predicted for every problem; and left to right is our own, for arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stir_train.baselines.interface import (
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.data.prompts import Wording, knows
from stir_train.generation.backend import Ability
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout

BUDGET = "Let's think step by step and use less than {budget} tokens."
BUDGET_SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Instruction:
    """An instruction behind the question, in one of several wordings.

    Attributes:
        name: Its row of the results.
        wordings: By the names that the grid calls them.
        needs: Nothing, so every backend answers it.
    """

    name: str
    wordings: Mapping[str, str]
    needs: frozenset[Ability] = frozenset()

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Nothing to learn, but the model must know the words."""
        for wording in self.wordings.values():
            require_known(harvest.loaded, wording)
        return {}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """Every wording."""
        return [{"wording": name} for name in self.wordings]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,  # noqa: ARG002 - the interface's
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, the problems so worded."""
        wording = Wording(instruction=self.wordings[str(setting["wording"])])
        return answering.answer(answering.reword(prompts, wording))


STEP_BY_STEP = Instruction(
    "prompt-step-by-step",
    {
        "think": "Let's think step by step.",
        "detail": "Reason step by step in detail, and check every step.",
    },
)
CONCISE = Instruction(
    "prompt-concise",
    {
        "concise": "Be concise.",
        "draft": "Think step by step, but write only a few words for each step.",
    },
)
LEFT_TO_RIGHT = Instruction(
    "prompt-left-to-right",
    {"left-to-right": "Work from left to right, one operation at a time, and write every result."},
)


class TokenBudget:
    """A stated budget of tokens."""

    name = "prompt-token-budget"
    needs: frozenset[Ability] = frozenset()

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """How long a right completion is."""
        require_known(harvest.loaded, BUDGET.format(budget=1234567890))
        lengths = [len(item.rollout.token_ids) for item in harvest.graded if item.grade.correct]
        if not lengths:
            raise NotApplicable("no completion of the harvest split is right")
        return {"mean_tokens": torch.tensor(sum(lengths) / len(lengths))}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """Every share of that length."""
        return [{"share": share} for share in BUDGET_SHARES]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy; the budget is stated, not enforced."""
        budget = max(1, round(float(setting["share"]) * float(parameters["mean_tokens"])))
        wording = Wording(instruction=BUDGET.format(budget=budget))
        return answering.answer(answering.reword(prompts, wording))


def require_known(loaded: LoadedModel, text: str) -> None:
    """Check that the vocabulary has the words of a text.

    Raises:
        NotApplicable: If it does not.
    """
    if not knows(loaded.tokenizer, text):
        raise NotApplicable(f"the model's vocabulary has no words for {text!r}")
