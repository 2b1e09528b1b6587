"""Causal validation: which entries help when they are injected, by paired replay.

A difference of means is a correlation. From a control point of a greedy rollout the completion is
continued with an impulse and without it (the latter is the greedy rollout itself); both are graded.
From the second round on, half of the trials start from the control points that earlier trials came
to, where the next impulse of a controller lands, and half take the entry that a value head trained on
the trials so far likes best, so that where it is too hopeful, the next one knows.
This module decides what to try next and what the outcomes say; it generates nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.stores.interventions import InterventionData
from stir_train.types.reports import EntryUplift
from stir_train.types.steering import UNSTEERED, ControlBasis, Intervention, PlannedTrial
from stir_train.types.utility import Utility

NEAREST = 8
"""Of the entries drawn at random half are of this many most similar ones, half of all."""
GUIDED = 0.5
"""Share of trials that take what a guide scores best, once there is one."""
PRIOR_TRIALS = 4.0
"""An entry's mean uplift is shrunk towards the mean of all as by this many trials."""
INTERVAL = 1.96
MIN_TRIALS = 4
"""An entry is given up early only after this many trials."""


@runtime_checkable
class PooledStates(Protocol):
    """States ``Float[S L D]``, wherever they are."""

    def gather(self, index: Int[Tensor, "B"]) -> Float[Tensor, "B L D"]:
        """The states of some rows, in the order of ``index``."""
        ...


@dataclass(frozen=True)
class StatePool:
    """Control-point states of greedy rollouts and of earlier trials, where trials may start.

    Attributes:
        states: ``[S L D]``, one row a control point, for the captured blocks; read when one is drawn.
        points: ``Int[S]``, 1-based.
        weights: ``Float[S]``, how often a state is tried, relative to others.
        blocks: The captured blocks.
        steered: ``Int[S]``, the block of the impulses on the way here, or ``UNSTEERED``. A
            controller steers one block, so a trial from here is of that block too.
    """

    states: PooledStates
    points: Int[Tensor, "S"]
    weights: Float[Tensor, "S"]
    blocks: tuple[int, ...]
    steered: Int[Tensor, "S"]


Guide = Callable[[int, int, Float[Tensor, "L D"], Float[Tensor, "E D"]], Float[Tensor, "E"]]
"""Scores candidates: (block, control point, state in every captured block, impulses) to scores."""


@dataclass(frozen=True)
class Injection:
    """A block and a strength."""

    block: int
    strength: float


def pool_of(data: InterventionData) -> StatePool:
    """The states that trials may start from: greedy ones and steered ones come up equally often.

    States with nothing to gain come up like others: where an impulse does harm is half of what
    the value head must know.
    """
    steered = data.steered()
    weights = torch.ones(len(steered))
    for group in (steered == UNSTEERED, steered != UNSTEERED):
        weights[group] /= weights[group].sum().clamp_min(1e-12)
    return StatePool(data.states, data.labels.point, weights, data.states.blocks, steered)


def plan_trials(
    pool: StatePool,
    basis: ControlBasis,
    active: Bool[Tensor, "K"],
    injections: Sequence[Injection],
    num_trials: int,
    generator: torch.Generator,
    *,
    guide: Guide | None = None,
) -> list[PlannedTrial]:
    """Draw states by weight, an injection evenly, and an active correction of that block and point.

    States whose control point has no active entry in the injection's block are skipped, and so are states
    that were steered in another block than any injection's.
    """
    drawn = torch.multinomial(pool.weights, num_trials, replacement=True, generator=generator)
    draws = torch.rand((num_trials, 2), generator=generator, dtype=torch.float64)
    plans = []
    for state, (arm_draw, guide_draw) in zip(drawn.tolist(), draws.tolist(), strict=True):
        came_by = int(pool.steered[state])
        open_arms = [
            injection for injection in injections if came_by in (UNSTEERED, injection.block)
        ]
        if not open_arms:
            continue
        injection = open_arms[int(arm_draw * len(open_arms))]
        point, states = int(pool.points[state]), pool.states.gather(torch.tensor([state]))[0]
        at = states[pool.blocks.index(injection.block)]
        entries, probabilities = _entry_probabilities(basis, active, injection.block, point, at)
        if not len(entries):
            continue
        pick = int(torch.multinomial(probabilities, 1, generator=generator))
        if guide is not None:
            impulses = injection.strength * basis.directions[entries]
            best = int(guide(injection.block, point, states, impulses).argmax())
            pick = best if guide_draw < GUIDED else pick
            probabilities = (1 - GUIDED) * probabilities
            probabilities[best] += GUIDED
        propensity = float(probabilities[pick]) / len(open_arms)
        plans.append(
            PlannedTrial(state, injection.block, int(entries[pick]), injection.strength, propensity)
        )
    return plans


def entry_uplifts(
    trials: Sequence[Intervention],
    num_entries: int,
    utility: Utility,
) -> list[EntryUplift]:
    """Summarise the trials of every entry at states that had something to gain."""
    values: list[list[float]] = [[] for _ in range(num_entries)]
    for trial in trials:
        if trial.improvable:
            values[trial.entry].append(trial.uplift(utility))
    everything = [value for entry in values for value in entry]
    overall = sum(everything) / len(everything) if everything else 0.0
    return [_summarise(entry, own, overall) for entry, own in enumerate(values)]


def still_promising(uplifts: Sequence[EntryUplift]) -> Bool[Tensor, "K"]:
    """Everything but the entries whose trials already exclude a gain."""
    return torch.tensor([u.count < MIN_TRIALS or u.high > 0 for u in uplifts])


def mean_gain(trials: Sequence[Intervention], injection: Injection, utility: Utility) -> float:
    """What a perfect gate would gain by an injection's trials, where there was something to gain.

    Greedy returns have no noise, so the positive part of an uplift is not a lucky draw.
    """
    gains = [
        max(0.0, trial.uplift(utility))
        for trial in trials
        if trial.improvable
        and (trial.block, trial.strength) == (injection.block, injection.strength)
    ]
    return sum(gains) / len(gains) if gains else 0.0


def validated_basis(basis: ControlBasis, uplifts: Sequence[EntryUplift]) -> ControlBasis:
    """Keep corrections with a positive shrunken uplift, and their anchors; it is their quality."""
    quality = torch.tensor([uplift.shrunken for uplift in uplifts])
    tried = torch.tensor([uplift.count > 0 for uplift in uplifts])
    helpful = ~basis.is_anchor & tried & (quality > 0)
    key = [
        (block, saves, contrast)
        for block, saves, contrast in zip(
            basis.blocks.tolist(),
            basis.saves_tokens.tolist(),
            basis.contrast.tolist(),
            strict=True,
        )
    ]
    of_contrast = {key[i]: float(quality[i]) for i in helpful.nonzero()[:, 0].tolist()}
    kept = torch.tensor([i for i, k in enumerate(key) if k in of_contrast], dtype=torch.long)
    selected = basis.select(kept)
    return dataclasses.replace(
        selected, quality=torch.tensor([of_contrast[key[i]] for i in kept.tolist()])
    )


def _entry_probabilities(
    basis: ControlBasis,
    active: Bool[Tensor, "K"],
    block: int,
    point: int,
    state: Float[Tensor, "D"],
) -> tuple[Int[Tensor, "E"], Float[Tensor, "E"]]:
    """Active corrections of a block and point; half the mass on the most similar ones."""
    here = active & ~basis.is_anchor & (basis.blocks == block) & (basis.points == point)
    entries = here.nonzero()[:, 0]
    if not len(entries):
        return entries, torch.zeros(0)
    keys = basis.keys[entries]
    centre = keys.mean(0)
    query = torch.nn.functional.normalize(state, dim=-1) - centre
    similarity = torch.nn.functional.cosine_similarity(query[None], keys - centre, dim=-1)
    nearest = similarity.topk(min(NEAREST, len(entries))).indices
    probabilities = torch.full((len(entries),), 0.5 / len(entries))
    probabilities[nearest] += 0.5 / len(nearest)
    return entries, probabilities


def _summarise(entry: int, values: Sequence[float], overall: float) -> EntryUplift:
    count = len(values)
    mean = sum(values) / count if count else 0.0
    half = float("inf")
    if count > 1:
        variance = sum((value - mean) ** 2 for value in values) / (count - 1)
        half = INTERVAL * (variance / count) ** 0.5
    shrunken = (count * mean + PRIOR_TRIALS * overall) / (count + PRIOR_TRIALS)
    return EntryUplift(entry, count, mean, mean - half, mean + half, shrunken)
