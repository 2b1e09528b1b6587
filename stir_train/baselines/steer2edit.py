"""A steering vector turned into rank-one edits of heads and neurons (Steer2Edit, arXiv 2602.09870).

The paper's: a unit direction per layer (short minus long completions, at the outputs of attention and
feed-forward); a head's gain is the cosine of what it adds with the direction, a neuron's that of what
it adds; gains are shrunk as by an elastic net, ``sign(g) max(|g| - rho alpha, 0) / (rho (1 - alpha))``;
a head gets ``gain v k^T`` with ``k`` the direction seen through its map, a neuron's column moves by its
gain along the direction. Ours: the extremes are quarters, not twentieths, of fewer completions; the
direction may be turned round; and ``impulse`` feeds it the mean correction of the run's control
basis instead, in the harvested blocks.
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
from stir_train.baselines.reading import attention_output, feed_forward_output, read
from stir_train.types.rollout import Prompt, Rollout

EXTREME = 0.25
DIRECTIONS = ("shorter", "longer", "impulse")
RHOS, ALPHA = (0.1, 0.3, 0.6, 0.9), 0.1


class Steer2Edit:
    """Edit heads and neurons along a direction, each by its own gain."""

    name = "steer2edit"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Per block, what goes into both output maps and the directions at their outputs."""
        loaded, basis = harvest.loaded, harvest.basis
        if basis is None:
            raise NotApplicable(
                "the run makes no control basis; try a mode in tune.modes that has one"
            )
        try:
            layers = {
                f"attention {i}": attention_output(block) for i, block in enumerate(loaded.blocks)
            } | {
                f"neurons {i}": feed_forward_output(block) for i, block in enumerate(loaded.blocks)
            }
        except LookupError as error:
            raise NotApplicable(str(error)) from error
        sides = [
            _means(harvest, rollouts, layers) for rollouts in extremes_of_length(harvest, EXTREME)
        ]
        parameters = {}
        for name in layers:
            (short_in, short_out), (long_in, long_out) = (side[name] for side in sides)
            parameters[f"given {name}"] = (short_in + long_in) / 2
            parameters[f"shorter {name}"] = nn.functional.normalize(short_out - long_out, dim=-1)
            parameters[f"longer {name}"] = -parameters[f"shorter {name}"]
        for block in harvest.blocks:
            corrections = ~basis.is_anchor & (basis.blocks == block)
            if bool(corrections.any()):
                mean = basis.directions[corrections].mean(0)
                for kind in ("attention", "neurons"):
                    parameters[f"impulse {kind} {block}"] = nn.functional.normalize(mean, dim=-1)
        return parameters

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """Every direction and shrinkage."""
        return [{"towards": towards, "rho": rho} for towards in DIRECTIONS for rho in RHOS]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy with the edited weights."""
        num_heads = answering.loaded.model.config.get_text_config().num_attention_heads
        rho, weights = float(setting["rho"]), {}
        for i, block in enumerate(answering.loaded.blocks):
            attention = parameters.get(f"{setting['towards']} attention {i}")
            neurons = parameters.get(f"{setting['towards']} neurons {i}")
            if attention is not None:
                layer = attention_output(block)
                weights[layer] = edit_heads(
                    layer.weight.detach(),
                    parameters[f"given attention {i}"].to(layer.weight),
                    attention.to(layer.weight),
                    num_heads,
                    rho,
                )
            if neurons is not None:
                layer = feed_forward_output(block)
                weights[layer] = edit_neurons(
                    layer.weight.detach(),
                    parameters[f"given neurons {i}"].to(layer.weight),
                    neurons.to(layer.weight),
                    rho,
                )
        return answering.answer(prompts, edit=edited(weights))


def shrunk(gain: Tensor, rho: float, alpha: float = ALPHA) -> Tensor:
    """The elastic net's closed form."""
    return gain.sign() * (gain.abs() - rho * alpha).clamp_min(0) / (rho * (1 - alpha))


def edit_heads(
    weight: Float[Tensor, "D E"],
    given: Float[Tensor, "E"],
    direction: Float[Tensor, "D"],
    num_heads: int,
    rho: float,
) -> Float[Tensor, "D E"]:
    """Add to every head's slice its shrunk gain times the direction and what it sees of it."""
    slices = weight.reshape(weight.shape[0], num_heads, -1)
    heads = given.view(num_heads, -1)
    added = torch.einsum("dhe,he->hd", slices, heads)
    gains = shrunk(nn.functional.cosine_similarity(added, direction[None], dim=-1), rho)
    seen = nn.functional.normalize(torch.einsum("dhe,d->he", slices, direction), dim=-1)
    change = torch.einsum("h,d,he->dhe", gains, direction, seen)
    return (slices + change).reshape(weight.shape)


def edit_neurons(
    weight: Float[Tensor, "D E"],
    given: Float[Tensor, "E"],
    direction: Float[Tensor, "D"],
    rho: float,
) -> Float[Tensor, "D E"]:
    """Move every neuron's column along the direction by its shrunk gain, with its own sign."""
    along = direction @ weight
    gains = given.sign() * along / weight.norm(dim=0).clamp_min(1e-12)
    return weight + torch.outer(direction, shrunk(gains, rho) * along.sign())


def _means(
    harvest: HarvestData, rollouts: Sequence[Rollout], layers: dict[str, nn.Linear]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean input and output of each layer over completion tokens."""
    totals = {
        name: (torch.zeros(layer.in_features), torch.zeros(layer.out_features))
        for name, layer in layers.items()
    }
    inputs = {f"in {name}": layer for name, layer in layers.items()}
    for reading in read(harvest.loaded, rollouts, layers, inputs):
        for name, (given, gave) in totals.items():
            given += reading.means(f"in {name}").sum(0)
            gave += reading.means(name).sum(0)
    return {name: (a / len(rollouts), b / len(rollouts)) for name, (a, b) in totals.items()}
