"""Weights edited against heads that write in favour of short (or long) reasoning (ThinkEdit).

The paper's: per layer, the residual after attention averaged over thinking tokens, long minus short;
a head's score is how far its mean contribution on short examples points against that; of the
highest-scoring heads the component along the direction is projected out of their slice of the
attention's output map. Ours: long and short are the extreme quarters of the model's own completions,
the share of heads is tuned, and so is which of the two directions is taken out: the paper lengthens,
the opposite shortens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stir_train.baselines.editing import edited
from stir_train.baselines.interface import (
    EDITS,
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.baselines.pairs import extremes_of_length
from stir_train.baselines.reading import attention_output, read
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout

EXTREME = 0.25
SHARES = (0.04, 0.1, 0.25, 0.5, 1.0)
SIDES = ("short", "long")


class ThinkEdit:
    """Project a direction out of the heads that write it."""

    name = "thinkedit"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Directions ``Float[L D]`` and, of either side, every head's score ``Float[L H]``."""
        loaded = harvest.loaded
        try:
            outputs = [attention_output(block) for block in loaded.blocks]
        except LookupError as error:
            raise NotApplicable(str(error)) from error
        means, heads = {}, {}
        for side, rollouts in zip(SIDES, extremes_of_length(harvest, EXTREME), strict=True):
            means[side], heads[side] = _read(loaded, rollouts, outputs)
        longer = nn.functional.normalize(means["long"] - means["short"], dim=-1)
        parameters = {"direction": longer}
        # The short side writes against the direction, the long side along it.
        for side, sign in (("short", -1.0), ("long", 1.0)):
            scores = [
                sign * contributions(layer.weight.detach().float().cpu(), found) @ direction
                for layer, found, direction in zip(outputs, heads[side], longer, strict=True)
            ]
            parameters[f"scores {side}"] = torch.stack(scores)
        return parameters

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """Either side, every share of heads."""
        return [{"against": side, "heads": share} for side in SIDES for share in SHARES]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy with the edited weights."""
        scores = parameters[f"scores {setting['against']}"]
        count = max(1, round(float(setting["heads"]) * scores.numel()))
        weights: dict[nn.Linear, Tensor] = {}
        for flat in scores.flatten().topk(count).indices.tolist():
            layer_index, head = divmod(flat, scores.shape[1])
            layer = attention_output(answering.loaded.blocks[layer_index])
            weight = weights.get(layer, layer.weight.detach().clone())
            weights[layer] = without_direction(
                weight, parameters["direction"][layer_index].to(weight), head, scores.shape[1]
            )
        return answering.answer(prompts, edit=edited(weights))


def contributions(
    weight: Float[Tensor, "D E"], heads: Float[Tensor, "H E_h"]
) -> Float[Tensor, "H D"]:
    """What each head adds to the residual stream, from what it gives."""
    num_heads, width = heads.shape
    slices = weight.reshape(weight.shape[0], num_heads, width)
    return torch.einsum("dhe,he->hd", slices, heads)


def without_direction(
    weight: Float[Tensor, "D E"], direction: Float[Tensor, "D"], head: int, num_heads: int
) -> Float[Tensor, "D E"]:
    """The output map, one head of which no longer writes along a unit direction."""
    changed = weight.clone()
    width = weight.shape[1] // num_heads
    part = changed[:, head * width : (head + 1) * width]
    part -= torch.outer(direction, direction @ part)
    return changed


def _read(
    loaded: LoadedModel, rollouts: Sequence[Rollout], outputs: Sequence[nn.Linear]
) -> tuple[Float[Tensor, "L D"], list[Float[Tensor, "H E_h"]]]:
    """Mean residual after attention, and mean of what every head gives, per block."""
    num_heads = loaded.model.config.get_text_config().num_attention_heads
    count = len(outputs)
    residual = torch.zeros(count, loaded.identity.width)
    given = [torch.zeros(layer.in_features) for layer in outputs]
    for reading in read(
        loaded,
        rollouts,
        {f"out {i}": layer for i, layer in enumerate(outputs)},
        {f"in {i}": layer for i, layer in enumerate(outputs)}
        | {f"block {i}": block for i, block in enumerate(loaded.blocks)},
    ):
        for i in range(count):
            residual[i] += (reading.means(f"block {i}") + reading.means(f"out {i}")).sum(0)
            given[i] += reading.means(f"in {i}").sum(0)
    heads = [total.view(num_heads, -1) / len(rollouts) for total in given]
    return residual / len(rollouts), heads
