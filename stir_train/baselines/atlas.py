"""A verifier of latent states picks among fixed steering actions, step by step (as ATLAS, arXiv 2601.03093).

The paper's, of which we know the abstract and summaries: steps end at delimiters; a light verifier is trained on hidden
states to predict the quality of the reasoning so far; and what it predicts chooses which of some fixed vectors is added
at a step, if any. Ours: the verifier is a ridge-penalised logistic regression on the states that the harvest captured,
fitted to whether their completions ended right. The actions are three: where it expects a wrong end, the mean
state of right completions minus that of wrong ones of the same problems; where it expects a right one, that of the
shortest right completions minus that of the longest; between the two, nothing. (A linear verifier of steered
states would like the same action best everywhere, so it judges the states as they are.) The outer quantiles of the
harvest in which it acts, block and strength are tuned, a strength of 1 being the usual distance of a state from the
mean. It decides inside the pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stir_train.baselines.interface import (
    STEERS,
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.baselines.pairs import right_and_wrong, right_states, shortest_and_longest_right
from stir_train.baselines.value_exit import fit_probe
from stir_train.generation.controller import ControlBatch, Decision
from stir_train.types.places import Place
from stir_train.types.rollout import Prompt, Rollout

QUANTILES = (0.25, 0.5)
"""Share of the harvest's states on either side at which it acts."""
STRENGTHS = (0.5, 1.0, 2.0)
"""In usual distances of a state from the mean."""


@dataclass(frozen=True)
class VerifiedController:
    """A `Controller` that adds one of two vectors, or none, by what a verifier says of the state.

    Attributes:
        block: Where.
        weight, bias: Of the verifier, ``Float[D]`` and a number: log odds of a right end.
        low, high: Log odds up to which the first vector is added, and from which the second.
        actions: ``Float[2 D]``, strength included.
        strength: For the record.
        place: At control points.
    """

    block: int
    weight: Float[Tensor, "D"]
    bias: float
    low: float
    high: float
    actions: Float[Tensor, "2 D"]
    strength: float
    place: Place = "control_point"

    @property
    def reads(self) -> tuple[int, ...]:
        """The block that it steers."""
        return (self.block,)

    def decide(
        self,
        states: Float[Tensor, "R D"],
        batch: ControlBatch,  # noqa: ARG002 - the protocol's
    ) -> Decision:
        """Towards right where a wrong end is expected, towards short where a right one is."""
        odds = states.to(self.weight) @ self.weight + self.bias
        doubtful, sure = odds <= self.low, odds >= self.high
        deltas = torch.where(doubtful[:, None], self.actions[0], self.actions[1]).to(states)
        acts = (doubtful | sure) & (deltas != 0).any(1)
        return Decision.unscored(deltas, acts.to(states) * self.strength)


class Atlas:
    """The action that a verifier's word on the state calls for."""

    name = "atlas"
    needs = STEERS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Verifier, thresholds and both vectors of every block."""
        labels, rows = right_states(harvest), _rows_of(harvest)
        pairs = {
            "right": right_and_wrong(harvest),
            "short": [([short], [long]) for short, long in shortest_and_longest_right(harvest)],
        }
        parameters: dict[str, Tensor] = {}
        for block in harvest.blocks:
            states = harvest.captured.at_block(block).float()
            weight, bias = fit_probe(states, labels)
            odds = states @ weight + bias
            scale = (states - states.mean(0)).square().sum(1).mean().sqrt()
            parameters |= {f"weight {block}": weight, f"bias {block}": bias}
            parameters[f"scale {block}"] = scale
            for name, sides in pairs.items():
                parameters[f"{name} {block}"] = _difference(states, rows, sides)
            for quantile in QUANTILES:
                parameters[f"low {block} {quantile:g}"] = odds.quantile(quantile)
                parameters[f"high {block} {quantile:g}"] = odds.quantile(1 - quantile)
        return parameters

    def settings(self, blocks: Sequence[int]) -> list[Setting]:
        """Every block, quantile and strength."""
        return [
            {"block": block, "quantile": quantile, "strength": strength}
            for block in blocks
            for quantile in QUANTILES
            for strength in STRENGTHS
        ]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, the verifier asked at every control point."""
        block, strength = int(setting["block"]), float(setting["strength"])
        at = f"{block} {float(setting['quantile']):g}"
        units = torch.stack([parameters[f"right {block}"], parameters[f"short {block}"]])
        actions = parameters[f"scale {block}"] * units
        controller = VerifiedController(
            block,
            parameters[f"weight {block}"].to(answering.loaded.device),
            float(parameters[f"bias {block}"]),
            float(parameters[f"low {at}"]),
            float(parameters[f"high {at}"]),
            strength * actions.to(answering.loaded.device),
            strength,
        )
        return answering.answer(prompts, controller=controller)


def _rows_of(harvest: HarvestData) -> dict[tuple[str, int], list[int]]:
    """Rows of the captured states by completion."""
    rows: dict[tuple[str, int], list[int]] = {}
    for row, label in enumerate(harvest.captured.labels):
        rows.setdefault((label.prompt_id, label.sample), []).append(row)
    return rows


def _difference(
    states: Float[Tensor, "N D"],
    rows: Mapping[tuple[str, int], Sequence[int]],
    pairs: Sequence[tuple[Sequence[Rollout], Sequence[Rollout]]],
) -> Float[Tensor, "D"]:
    """Mean state of the first side's completions less the second's, problem by problem, as a unit vector.

    Raises:
        NotApplicable: If no problem has control points on both sides.
    """
    found = []
    for sides in pairs:
        of_sides = [
            [row for r in side for row in rows.get((r.prompt_id, r.sample), ())] for side in sides
        ]
        if all(of_sides):
            first, second = (states[some].mean(0) for some in of_sides)
            found.append(first - second)
    if not found:
        raise NotApplicable("no problem has control points in completions of both kinds")
    return nn.functional.normalize(torch.stack(found).mean(0), dim=-1)
