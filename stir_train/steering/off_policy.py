"""What controllers would gain, estimated from the log of validation; nothing is decoded.

Validation replayed answers from control points with impulses that were drawn at random, wrote down the
probability of each draw, and knows how every answer ends without the impulse. So a controller can be asked
about the recorded states. Where it adds what was logged, the outcome counts, by the inverse of that
probability; where it adds nothing, its gain is 0, without an estimate.

A replay differs by one impulse from the trajectory that it left. So this is the mean gain of a single decision
over the logged states: something to rank controllers by, not the utility of one that decides again and again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.generation.controller import ControlBatch, Controller, Decision
from stir_train.stores.interventions import InterventionData
from stir_train.types.shortlist import GainEstimate
from stir_train.types.steering import UNSTEERED, ControlBasis
from stir_train.types.utility import Utility

STATES_AT_ONCE = 1024
"""States held in memory at a time."""
DROPPED = -2
"""Stands for an entry that validation dropped, so that no controller can choose it."""


@runtime_checkable
class RecordedStates(Protocol):
    """States ``Float[S L D]``, wherever they are."""

    def gather(
        self, index: Int[Tensor, "B"], blocks: Sequence[int] | None = None
    ) -> Float[Tensor, "B L D"]:
        """Some blocks' states of some rows, in the order asked for."""
        ...


@dataclass(frozen=True)
class ReplayLog:
    """The trials of validation, as columns.

    Attributes:
        problem: ``Int[N]``, tells problems apart.
        number: ``Int[N]``, the round; what is tried changes from round to round.
        state: ``Int[N]``, row of the recorded states.
        point, token_index: ``Int[N]``, where that is.
        steered: ``Int[N]``, the block of the impulses on the way there, or ``UNSTEERED``.
        block: ``Int[N]``, where the impulse went.
        entry: ``Int[N]``, row of the basis as validation left it, or ``DROPPED``.
        strength: ``Float[N]``, its multiplier.
        propensity: ``Float[N]``, the probability that block, entry and strength had at the state.
        uplift: ``Float[N]``, utility with the impulse less that without.
    """

    problem: Int[Tensor, "N"]
    number: Int[Tensor, "N"]
    state: Int[Tensor, "N"]
    point: Int[Tensor, "N"]
    token_index: Int[Tensor, "N"]
    steered: Int[Tensor, "N"]
    block: Int[Tensor, "N"]
    entry: Int[Tensor, "N"]
    strength: Float[Tensor, "N"]
    propensity: Float[Tensor, "N"]
    uplift: Float[Tensor, "N"]

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.state)

    def select(self, index: Tensor) -> ReplayLog:
        """The trials at ``index`` (integers or a mask)."""
        return ReplayLog(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def of_block(self, block: int) -> ReplayLog:
        """The trials that say something of a controller of a block.

        Their rounds tried the block, and their states are among those that such a controller can come to:
        nothing steered on the way, or impulses in the same block did.
        """
        rounds = self.number[self.block == block].unique()
        reachable = (self.steered == UNSTEERED) | (self.steered == block)
        return self.select(torch.isin(self.number, rounds) & reachable)

    def batch(self) -> ControlBatch:
        """As what a controller is asked about their states."""
        return ControlBatch(
            prompt_ids=tuple(str(problem) for problem in self.problem.tolist()),
            samples=(0,) * len(self),
            points=self.point,
            token_indices=tuple(self.token_index.tolist()),
        )


def log_of(
    data: InterventionData,
    round_sizes: Sequence[int],
    bases: tuple[ControlBasis, ControlBasis],
    utility: Utility,
) -> ReplayLog:
    """The log of a finished validation.

    Args:
        data: All its rounds.
        round_sizes: Trials of each round.
        bases: What it injected from, and what it kept of that.
        utility: What an answer is worth.
    """
    trials = data.trials
    rows = {identity: row for row, identity in enumerate(_identities(bases[1]))}
    kept = torch.tensor([rows.get(identity, DROPPED) for identity in _identities(bases[0])])
    names = {name: i for i, name in enumerate(dict.fromkeys(t.prompt_id for t in trials))}
    state = _integers(t.state for t in trials)
    return ReplayLog(
        problem=_integers(names[t.prompt_id] for t in trials),
        number=torch.arange(len(round_sizes)).repeat_interleave(torch.tensor(round_sizes)),
        state=state,
        point=_integers(t.point for t in trials),
        token_index=_integers(t.token_index for t in trials),
        steered=data.steered()[state],
        block=_integers(t.block for t in trials),
        entry=kept[_integers(t.entry for t in trials)],
        strength=torch.tensor([t.strength for t in trials]),
        propensity=torch.tensor([t.propensity for t in trials], dtype=torch.float64),
        uplift=torch.tensor([t.uplift(utility) for t in trials], dtype=torch.float64),
    )


def estimate_gains(
    log: ReplayLog, states: RecordedStates, controllers: Sequence[Controller]
) -> list[GainEstimate | None]:
    """What each controller would gain by one decision; None where the log has nothing on it.

    Args:
        log: What was tried.
        states: Those that its rows name.
        controllers: Pure functions of the state at a control point, which choose among entries of the basis.
    """
    found: dict[int, GainEstimate | None] = {}
    for block in {controller.block for controller in controllers}:
        mine, own = [i for i, c in enumerate(controllers) if c.block == block], log.of_block(block)
        acts = torch.zeros(len(mine), len(own), dtype=torch.bool)
        matches = torch.zeros_like(acts)
        for rows in torch.arange(len(own)).split(STATES_AT_ONCE):
            part = own.select(rows)
            shown = {
                reads: states.gather(part.state, reads).flatten(1)
                for reads in {controllers[i].reads for i in mine}
            }
            for place, i in enumerate(mine):
                with torch.no_grad():
                    made = controllers[i].decide(shown[controllers[i].reads], part.batch())
                if made is not None:
                    acts[place, rows] = made.fires
                    matches[place, rows] = _is_logged(part, made, block)
        for place, i in enumerate(mine):
            found[i] = estimate_gain(
                own.uplift, own.propensity, matches[place], acts[place], own.problem
            )
    return [found[i] for i in range(len(controllers))]


def estimate_gain(
    uplift: Float[Tensor, "N"],
    propensity: Float[Tensor, "N"],
    matches: Bool[Tensor, "N"] | Float[Tensor, "N"],
    acts: Bool[Tensor, "N"] | Float[Tensor, "N"],
    problem: Int[Tensor, "N"],
) -> GainEstimate | None:
    """How often a policy acts, times its mean gain where it does, by self-normalised inverse propensity.

    With the weights ``w = matches / propensity``, that is ``mean(acts) * sum(w * uplift) / sum(w)``. How often
    it acts is known at every logged state, and so is the outcome without an action, so chance is left in the
    second factor alone. Rounds may differ in their propensities: each trial is weighted by that of its own.

    Args:
        uplift: Utility with the logged action, less that without any.
        propensity: The probability with which it was drawn.
        matches: The probability that the policy takes the same action there; 0 or 1 of a deterministic one.
        acts: The probability that it takes any.
        problem: Trials of one problem are not independent, so its sum is what varies in the standard error.

    Returns:
        None if there are no trials, or it acts and no trial has its action.
    """
    if not len(uplift):
        return None
    rate = float(acts.double().mean())
    if not rate:
        return GainEstimate(0.0, 0.0, float(len(uplift)), 0.0)
    weights = matches.double() / propensity.double()
    total = weights.sum()
    if not total:
        return None
    mean = (weights * uplift).sum() / total
    deviations = weights * (uplift - mean)
    by_problem = torch.zeros(int(problem.max()) + 1, dtype=torch.float64)
    by_problem.index_add_(0, problem, deviations)
    return GainEstimate(
        gain=rate * float(mean),
        standard_error=rate * float(by_problem.square().sum().sqrt() / total),
        num_effective=float(total.square() / weights.square().sum()),
        share_steered=rate,
    )


def _is_logged(log: ReplayLog, made: Decision, block: int) -> Bool[Tensor, "N"]:
    """Where a decision is the logged action, which a strength that was bounded is not."""
    same = (log.block == block) & (made.chosen == log.entry)
    return made.fires & same & torch.isclose(made.strengths, log.strength, rtol=1e-5)


def _identities(basis: ControlBasis) -> list[tuple[int, bool, int, bool]]:
    """What tells the entries of a basis apart, and stays with them when some are dropped."""
    return list(
        zip(
            basis.blocks.tolist(),
            basis.saves_tokens.tolist(),
            basis.contrast.tolist(),
            basis.is_anchor.tolist(),
            strict=True,
        )
    )


def _integers(values: Iterable[int]) -> Int[Tensor, "N"]:
    return torch.tensor(list(values), dtype=torch.long)
