"""Worked examples before the problem (few-shot prompting, arXiv 2005.14165; chains of thought, 2201.11903).

The papers': k problems with worked solutions stand before the problem. Ours: the solutions are the model's own
right completions of harvest problems, the shortest of each problem, problems in the harvest split's order; of a
completion that thinks, only what follows the thinking; all in one message, so that a chat template does not cut
solutions short; k is tuned, and an example that does not fit the context is left out. Prompt tokens are no
generated tokens: they are in the results beside them (`FedPrompts`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stir_train.baselines.interface import (
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.baselines.prompting import require_known
from stir_train.data.prompts import Wording
from stir_train.generation.backend import Ability
from stir_train.types.rollout import GradedRollout, Prompt, Rollout

COUNTS = (1, 2, 4, 8)
END_OF_THINKING = "</think>"


class FewShot:
    """The first k worked examples."""

    name = "prompt-few-shot"
    needs: frozenset[Ability] = frozenset()

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Questions and responses, ``UInt8`` tensors of UTF-8 text."""
        parameters = {}
        for number, (question, response) in enumerate(worked_examples(harvest, max(COUNTS))):
            require_known(harvest.loaded, question + response)
            parameters[f"question {number}"] = _bytes_of(question)
            parameters[f"response {number}"] = _bytes_of(response)
        if not parameters:
            raise NotApplicable("no completion of the harvest split is right")
        return parameters

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """Every number of examples."""
        return [{"examples": count} for count in COUNTS]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, after as many of the examples as fit."""
        count = min(int(setting["examples"]), len(parameters) // 2)
        examples = tuple(
            (_text_of(parameters[f"question {i}"]), _text_of(parameters[f"response {i}"]))
            for i in range(count)
        )
        return answering.answer([fitting(answering, prompt, examples) for prompt in prompts])


def worked_examples(harvest: HarvestData, count: int) -> list[tuple[str, str]]:
    """Questions of the first problems that have a right completion, and the shortest of each."""
    shortest: dict[str, GradedRollout] = {}
    for item in harvest.graded:
        best = shortest.get(item.rollout.prompt_id)
        if item.grade.correct and (
            best is None or len(item.rollout.token_ids) < len(best.rollout.token_ids)
        ):
            shortest[item.rollout.prompt_id] = item
    solved = [prompt for prompt in harvest.prompts if prompt.prompt_id in shortest]
    return [
        (
            prompt.question,
            shortest[prompt.prompt_id].text.rpartition(END_OF_THINKING)[2].strip(),
        )
        for prompt in solved[:count]
    ]


def fitting(
    answering: AnsweringContext, prompt: Prompt, examples: Sequence[tuple[str, str]]
) -> Prompt:
    """The problem after as many examples as leave room for a completion of the whole budget."""
    room = answering.loaded.max_tokens - answering.greedy.max_new_tokens
    for count in range(len(examples), 0, -1):
        (worded,) = answering.reword([prompt], Wording(examples=tuple(examples[:count])))
        if len(worded.token_ids) <= room:
            return worded
    return prompt


def _bytes_of(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _text_of(encoded: Tensor) -> str:
    return bytes(encoded.tolist()).decode()
