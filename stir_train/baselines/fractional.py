"""How much reasoning, as a fraction of a direction, and a vote over fractions (arXiv 2506.15882).

The paper's: last-token states of all layers for a problem that is to be answered directly and for the
same to be reasoned through; the first principal component of their differences, its sign that of the
mean; after every block's feed-forward part, ``x <- |x| normalise(normalise(x) + s r normalise(v))`` at
the last position, ``r`` falling along a cosine from 1 to 0.5 over 50 tokens; ``s`` uniform in
[0, 0.15], several draws, a majority of their samples. Ours: problems of the harvest split (the release
takes them from the evaluation set), the instruction stands before the rendered prompt, the direction
acts from the first decoded token on, and a handful of draws, not a hundred samples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stir_train.baselines.interface import (
    EDITS,
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.baselines.reading import block_outputs, feed_forward_output, read
from stir_train.baselines.self_consistency import elect, votes_of
from stir_train.generation.backend import GenerationRequest
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout

DIRECT = "Solve the problem with direct answering. "
REASONED = "Solve the problem with step-by-step detailed reasoning. "
RAMP_TOKENS, LEAST = 50, 0.5
NUM_PROBLEMS = 256
TOGETHER = 64
"""Prompts decoded in one call, so that all are at the same token."""


class FractionalReasoning:
    """Several fractions of more reasoning, and a vote."""

    name = "fractional-reasoning"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """One unit direction a block, ``Float[L D]``."""
        loaded = harvest.loaded
        prompts = {g.rollout.prompt_id: g.rollout for g in harvest.graded}
        chosen = list(prompts.values())[:NUM_PROBLEMS]
        modules = block_outputs(loaded, range(len(loaded.blocks)))
        sides = []
        for instruction in (DIRECT, REASONED):
            ids = self._instruction_ids(loaded, instruction)
            asked = [
                dataclasses.replace(r, prompt_token_ids=ids, token_ids=r.prompt_token_ids)
                for r in chosen
            ]
            found = [
                torch.stack([reading.lasts(name) for name in modules], dim=1)
                for reading in read(loaded, asked, modules)
            ]
            sides.append(torch.cat(found))
        differences = sides[1] - sides[0]
        flat = differences.flatten(1)
        _, _, directions = torch.linalg.svd(flat, full_matrices=False)
        first = directions[0] * torch.sign(directions[0] @ flat.mean(0))
        return {"direction": nn.functional.normalize(first.view(differences.shape[1:]), dim=-1)}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """The largest fraction, and how many are drawn below it."""
        return [{"draws": draws, "most": most} for draws in (1, 3, 5) for most in (0.15, 0.6)]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """One sample under each of evenly spread fractions, and the first of the majority's."""
        draws, most = int(setting["draws"]), float(setting["most"])
        answered = []
        for first in range(0, len(prompts), TOGETHER):
            some = prompts[first : first + TOGETHER]
            rounds = []
            for draw in range(draws):
                fraction = most * (draw + 1) / draws
                with turning(answering.loaded, parameters["direction"], fraction):
                    requests = [GenerationRequest(prompt, draw) for prompt in some]
                    rounds.append(votes_of(answering, requests, answering.sampled))
            answered += [elect(votes) for votes in zip(*rounds, strict=True)]
        return answered

    def _instruction_ids(self, loaded: LoadedModel, instruction: str) -> tuple[int, ...]:
        ids = loaded.tokenizer(instruction, add_special_tokens=False)["input_ids"]
        if not ids or loaded.tokenizer.unk_token_id in ids:
            raise NotApplicable("the model's vocabulary has no words for the instructions")
        return tuple(ids)


@contextmanager
def turning(
    loaded: LoadedModel, directions: Float[Tensor, "L D"], fraction: float
) -> Iterator[None]:
    """Turn what every feed-forward part gives towards its direction, its norm kept."""
    steps = [0] * len(loaded.blocks)

    def hook_of(block: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            if output.shape[1] > 1:
                return None  # the pass that reads the prompt
            turned = turn(output, directions[block].to(output), fraction * ramp(steps[block]))
            steps[block] += 1
            return turned

        return hook

    with ExitStack() as hooks:
        for index, block in enumerate(loaded.blocks):
            module = feed_forward_output(block)
            hooks.callback(module.register_forward_hook(hook_of(index)).remove)
        yield


def turn(x: Float[Tensor, "B T D"], direction: Tensor, amount: float) -> Float[Tensor, "B T D"]:
    """Add an amount of a unit direction to each unit vector, and give it its norm back."""
    moved = nn.functional.normalize(x, dim=-1) + amount * direction
    return x.norm(dim=-1, keepdim=True) * nn.functional.normalize(moved, dim=-1)


def ramp(step: int) -> float:
    """From 1 down a cosine, never below a half."""
    return max(LEAST, math.cos(math.pi / 2 * min(1.0, step / RAMP_TOKENS)))
