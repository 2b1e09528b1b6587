"""What training did to a small model, done to a larger one's logits (RAST, arXiv 2506.15710).

The paper's: the next token is taken from ``large + strength (small trained by RL - small before)``, logits of three
models that read the same tokens; strength 1. Ours: the strength is tuned, decoding is greedy, and of vocabularies
that are padded to different sizes the common rows count. The models decode in step outside the engine, each with
a cache of its own, and a token costs a pass of each: three, though two are of small models.

It needs two more models than a run has, so it is not among `all`: name it from a file of your own, as in
``RAST = Rast(tuned="small-rl", base="small")`` and ``baselines.methods: [my_rast:RAST]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.baselines.interface import (
    EDITS,
    AnsweringContext,
    HarvestData,
    Parameters,
    Setting,
)
from stir_train.baselines.other_models import other_model, require_vocabulary
from stir_train.generation.backend import Ability, SamplingParams
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout

STRENGTHS = (0.5, 1.0, 1.5)
ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Rast:
    """A `Baseline` over two small models of the run's own tokenizer.

    Attributes:
        tuned: Directory or hub id of the small model that was trained.
        base: Of the same before training.
        name: Its row of the results.
        needs: The run's model in this process.
    """

    tuned: str
    base: str
    name: str = "rast"
    needs: frozenset[Ability] = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """No parameters, but the models must read the same tokens.

        Raises:
            NotApplicable: If they do not.
        """
        for name in (self.tuned, self.base):
            require_vocabulary(harvest.loaded, other_model(name))
        return {}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """Every strength."""
        return [{"strength": strength} for strength in STRENGTHS]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,  # noqa: ARG002 - the interface's
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, prompts of like length side by side."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
        models = (answering.loaded, other_model(self.tuned), other_model(self.base))
        made: dict[int, Rollout] = {}
        for start in range(0, len(order), ROWS_AT_ONCE):
            some = order[start : start + ROWS_AT_ONCE]
            found = _decode(
                models, float(setting["strength"]), [prompts[i] for i in some], answering.greedy
            )
            made |= dict(zip(some, found, strict=True))
        return [made[i] for i in range(len(prompts))]


@dataclass
class _Reader:
    """A model that reads a batch on, with its cache."""

    loaded: LoadedModel
    cache: Any = None

    def read(self, fed: Tensor, mask: Tensor, positions: Tensor) -> Float[Tensor, "B V"]:
        """Feed tokens and return the logits after the last, on the CPU, where the models meet."""
        device = self.loaded.device
        made: Any = self.loaded.model(
            input_ids=fed.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = made.past_key_values
        logits: Tensor = made.logits[:, -1].float().cpu()
        return logits


@torch.no_grad()
def _decode(
    models: Sequence[LoadedModel],
    strength: float,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
) -> list[Rollout]:
    """Complete prompts, padded on the left, until all have ended."""
    readers = [_Reader(model) for model in models]
    num_rows, width = len(prompts), max(len(prompt.token_ids) for prompt in prompts)
    fed = torch.full((num_rows, width), models[0].pad_token_id)
    mask = torch.zeros(num_rows, width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        fed[row, width - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
        mask[row, width - len(prompt.token_ids) :] = 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    stop = torch.tensor(sampling.stop_token_ids, dtype=torch.long)
    ended = torch.zeros(num_rows, dtype=torch.bool)
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    while len(tokens) < sampling.max_new_tokens and not bool(ended.all()):
        found = [reader.read(fed, mask, positions) for reader in readers]
        common = min(logits.shape[1] for logits in found)
        large, tuned, base = (logits[:, :common] for logits in found)
        combined = (large + strength * (tuned - base)).log_softmax(-1)
        tokens.append(combined.argmax(-1))
        logprobs.append(combined.max(-1).values)
        ended |= torch.isin(tokens[-1], stop)
        fed, positions = tokens[-1][:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(fed)], dim=1)
    rows = zip(prompts, torch.stack(tokens, 1), torch.stack(logprobs, 1), strict=True)
    return [_rollout(prompt, ids, logs, stop) for prompt, ids, logs in rows]


def _rollout(prompt: Prompt, token_ids: Tensor, logprobs: Tensor, stop: Tensor) -> Rollout:
    """A row's completion, without what was decoded beside it after its end."""
    ends = torch.isin(token_ids, stop).nonzero()[:, 0]
    count = int(ends[0]) + 1 if len(ends) else len(token_ids)
    return Rollout(
        prompt_id=prompt.prompt_id,
        sample=0,
        prompt_token_ids=prompt.token_ids,
        token_ids=tuple(token_ids[:count].tolist()),
        logprobs=tuple(logprobs[:count].tolist()),
        control_points=(),
        finish_reason="stop" if len(ends) else "length",
        forward_passes=3 * count,
    )
