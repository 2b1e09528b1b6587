"""Steering along the columns of a sparse autoencoder, one for every category of step.

The papers' (RISE, arXiv 2512.23988; Hybrid, arXiv 2510.07364): a sparse autoencoder is trained on the states of steps,
its decoder's columns are directions of behaviours, and at every step the category that the step belongs to picks the
vector. Ours: the autoencoder keeps the few largest activations (which needs no penalty to tune) and is trained in the
run on the states at control points; a step's category is its most active latent; what is added in a category is the
column whose activation differs most between steps of it that ended right and wrong, with the sign of right, since
nobody names the behaviours; of a category without both, nothing. Block and strength are tuned, a strength of 1 being
the usual distance of a state from the mean. It decides inside the pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stir_train.baselines.interface import (
    STEERS,
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.baselines.pairs import right_states
from stir_train.generation.controller import ControlBatch, Decision
from stir_train.types.places import Place
from stir_train.types.rollout import Prompt, Rollout

NUM_LATENTS, NUM_ACTIVE = 32, 4
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 400, 512, 3e-3
MIN_STEPS = 8
"""Right and wrong ones that a category needs to be acted in."""
STRENGTHS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class SparseCode:
    """An autoencoder of states.

    Attributes:
        mean: ``Float[D]``, taken off the states.
        scale: Their root mean square distance from it, which they are divided by.
        encoder: ``Float[D K]``.
        bias: ``Float[K]``.
        decoder: ``Float[K D]``, unit rows.
    """

    mean: Float[Tensor, "D"]
    scale: Float[Tensor, ""]
    encoder: Float[Tensor, "D K"]
    bias: Float[Tensor, "K"]
    decoder: Float[Tensor, "K D"]

    def activations(self, states: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """Non-negative, zero but for the few largest."""
        return _largest(((states - self.mean) / self.scale) @ self.encoder + self.bias)

    def reconstruct(self, states: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """What the activations say of the states."""
        return self.mean + self.scale * (self.activations(states) @ self.decoder)


@dataclass(frozen=True)
class CategoryController:
    """A `Controller` that adds the vector of the category of a step.

    Attributes:
        block: Where.
        code: Says which latent is the most active.
        actions: ``Float[K D]``, what is added in its category, strength included; 0 leaves it alone.
        strength: For the record.
        place: At control points.
    """

    block: int
    code: SparseCode
    actions: Float[Tensor, "K D"]
    strength: float
    place: Place = "control_point"

    @property
    def reads(self) -> tuple[int, ...]:
        """The block that it steers; no head looks below it."""
        return (self.block,)

    def decide(
        self,
        states: Float[Tensor, "R D"],
        batch: ControlBatch,  # noqa: ARG002 - the protocol's
    ) -> Decision:
        """By the most active latent of each state, and not where none is."""
        most, category = self.code.activations(states.to(self.actions.device)).max(1)
        deltas = self.actions[category].to(states)
        acts = (most.to(states.device) > 0) & (deltas != 0).any(1)
        return Decision.unscored(deltas, acts.to(states) * self.strength)


class Rise:
    """The column that goes with being right, category by category."""

    name = "rise"
    needs = STEERS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """The autoencoder of every block, and its categories' vectors."""
        labels = right_states(harvest)
        parameters: dict[str, Tensor] = {}
        for block in harvest.blocks:
            states = harvest.captured.at_block(block).float()
            code = fit_code(states)
            actions = columns_of_right(code, states, labels)
            found = {**vars(code), "actions": actions}
            parameters |= {f"{name} {block}": tensor for name, tensor in found.items()}
        if not any(bool(parameters[f"actions {block}"].any()) for block in harvest.blocks):
            raise NotApplicable("no category of steps has enough right and wrong ones")
        return parameters

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
        """Greedy, a category's vector added at every control point."""
        block, strength = int(setting["block"]), float(setting["strength"])
        device = answering.loaded.device
        names = (field.name for field in dataclasses.fields(SparseCode))
        code = SparseCode(*(parameters[f"{name} {block}"].to(device) for name in names))
        actions = strength * code.scale * parameters[f"actions {block}"].to(device)
        return answering.answer(
            prompts, controller=CategoryController(block, code, actions, strength)
        )


def fit_code(states: Float[Tensor, "N D"]) -> SparseCode:
    """Train an autoencoder, its columns starting at some of the states; the same states give the same one."""
    generator = torch.Generator().manual_seed(0)
    mean = states.mean(0)
    scale = (states - mean).square().sum(1).mean().sqrt().clamp_min(1e-6)
    inputs = (states - mean) / scale
    first = torch.randint(len(inputs), (NUM_LATENTS,), generator=generator)
    decoder = nn.functional.normalize(inputs[first], dim=1).requires_grad_()
    encoder = decoder.detach().T.clone().requires_grad_()
    bias = torch.zeros(NUM_LATENTS, requires_grad=True)
    optimizer = torch.optim.Adam([encoder, bias, decoder], lr=LEARNING_RATE)
    for _ in range(NUM_STEPS):
        batch = inputs[torch.randint(len(inputs), (BATCH_SIZE,), generator=generator)]
        made = _largest(batch @ encoder + bias) @ nn.functional.normalize(decoder, dim=1)
        optimizer.zero_grad()
        (made - batch).square().sum(1).mean().backward()
        optimizer.step()
    columns = nn.functional.normalize(decoder.detach(), dim=1)
    return SparseCode(mean, scale, encoder.detach(), bias.detach(), columns)


def columns_of_right(
    code: SparseCode, states: Float[Tensor, "N D"], right: Bool[Tensor, "N"]
) -> Float[Tensor, "K D"]:
    """Of every category the signed column that tells its right steps from its wrong ones best; else 0."""
    activations = code.activations(states)
    most, category = activations.max(1)
    actions = torch.zeros_like(code.decoder)
    for latent in range(len(actions)):
        members = (category == latent) & (most > 0)
        good, bad = activations[members & right], activations[members & ~right]
        if min(len(good), len(bad)) < MIN_STEPS:
            continue
        spread = activations[members].std(0).clamp_min(1e-6)
        effect = (good.mean(0) - bad.mean(0)) / spread
        best = int(effect.abs().argmax())
        actions[latent] = effect[best].sign() * code.decoder[best]
    return actions


def _largest(values: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    kept = values.relu().topk(NUM_ACTIVE, dim=1)
    return torch.zeros_like(values).scatter(1, kept.indices, kept.values)
