"""Which settings tuning tries: all, or those that the log of validation does not speak against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from pydantic import TypeAdapter

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.steering import PreviewingSteering, RetrievingSteering, SteeringConfig
from stir_train.evals.halving import Candidate
from stir_train.evals.shortlist import worth_trying
from stir_train.generation.controller import Controller
from stir_train.runtime.answerers import utility_of
from stir_train.runtime.context import RunContext
from stir_train.steering.artifacts import SteeringArtifacts
from stir_train.steering.off_policy import estimate_gains, log_of
from stir_train.stores.interventions import InterventionStore
from stir_train.stores.steering import load_basis
from stir_train.types.results import SteeringTrial
from stir_train.types.shortlist import GainEstimate, RankedSetting, Shortlist
from stir_train.types.steering import ControlBasis
from stir_train.types.utility import Utility

_Estimates = TypeAdapter(list[GainEstimate | None])


def make_shortlist(
    context: RunContext, grid: Mapping[Candidate, SteeringConfig]
) -> Shortlist | None:
    """Rank the settings of the grid that can be ranked; None where the run asks for no ranking. Collective.

    Made again, it is the same: it depends on nothing but what validation and value heads left behind.
    """
    num_best = context.config.tune.num_shortlisted
    if num_best is None or not context.config.ranks_by_replays:
        return None
    rankable = {c: settings for c, settings in grid.items() if has_estimate(settings)}
    validation = context.stage("validate")

    def make() -> object:
        return _Estimates.dump_python(
            estimates_of(
                context.steering,
                (context.stage("basis"), validation),
                list(rankable.values()),
                utility_of(context.config),
            )
        )

    made = context.world.on_main("estimates from replays", make)
    estimates = _Estimates.validate_python(made)
    tried = worth_trying(list(rankable), estimates, num_best)
    ranked = [
        RankedSetting(candidate.name, settings, estimate, is_tried)
        for (candidate, settings), estimate, is_tried in zip(
            rankable.items(), estimates, tried, strict=True
        )
    ]
    store = InterventionStore(validation)
    num_replays = sum(len(store.plan(number)) for number in range(store.num_rounds()))
    return Shortlist(num_replays, tuple(ranked))


def still_tried(
    grid: Mapping[Candidate, SteeringConfig], shortlist: Shortlist | None
) -> dict[Candidate, SteeringConfig]:
    """The grid without what was left out, in its order."""
    ranked = () if shortlist is None else shortlist.ranked
    left_out = {setting.name for setting in ranked if not setting.is_tried}
    return {c: settings for c, settings in grid.items() if c.name not in left_out}


def with_tokens_saved(
    shortlist: Shortlist, trials: Sequence[SteeringTrial], num_problems: int
) -> Shortlist:
    """The same, saying what it saved.

    Args:
        shortlist: What was left out.
        trials: What was tried.
        num_problems: How many problems every setting answers, had it been tried.
    """
    modes = {setting.settings.mode for setting in shortlist.ranked}
    decoded = [
        trial.metrics.tokens_mean - trial.reused_tokens_mean
        for trial in trials
        if trial.settings.mode in modes
    ]
    saved = shortlist.num_left_out * num_problems * sum(decoded) / len(decoded)
    return dataclasses.replace(shortlist, tokens_saved=saved)


def has_estimate(settings: SteeringConfig) -> bool:
    """Whether replays can say something of settings: they choose entries of the basis by the state alone."""
    return (
        isinstance(settings, RetrievingSteering)
        and not isinstance(settings, PreviewingSteering)
        and settings.momentum_gate is None
    )


def estimates_of(
    artifacts: SteeringArtifacts,
    stages: tuple[StageDir, StageDir],
    tried: Sequence[SteeringConfig],
    utility: Utility,
) -> list[GainEstimate | None]:
    """What the log says of settings, in their order.

    Args:
        artifacts: What the controllers are made of.
        stages: Those of the basis and of its validation, finished.
        tried: Settings that can be ranked (`has_estimate`), their depths given.
        utility: What an answer is worth.
    """
    store = InterventionStore(stages[1])
    data = store.read()
    sizes = [len(store.plan(number)) for number in range(store.num_rounds())]
    injected, _ = load_basis(stages[0])
    kept = artifacts.basis()
    log = log_of(data, sizes, (injected, kept), utility)
    controllers = [_controller(artifacts, settings, kept) for settings in tried]
    return estimate_gains(log, data.states, controllers)


def _controller(
    artifacts: SteeringArtifacts, settings: SteeringConfig, basis: ControlBasis
) -> Controller:
    """On the CPU, since the log is read once and the order must not depend on the device."""
    made = artifacts.controller(settings, device=torch.device("cpu"), basis=basis)
    assert isinstance(made, Controller), "settings that choose among entries make one controller"
    return made
