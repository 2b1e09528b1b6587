"""What stages need their backend to be able to do, as far as the configuration says it.

Checked before the first of them begins, so that no run ends at its last stage for want of an ability.
What only a run's own choice says, `stir_train.runtime.generation.generate_jobs` checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stir_train.baselines.registry import load_baselines
from stir_train.config.pipeline import stage
from stir_train.config.run import RunConfig
from stir_train.config.steering import SteeringConfig, changed
from stir_train.generation.backend import Ability, require_abilities
from stir_train.generation.open import abilities_of, check_installation
from stir_train.runtime.answerers import steering_needs

Needs = Mapping[str, frozenset[Ability]]
"""Needed abilities by what needs them, in a user's words."""


def require_backend(config: RunConfig, stages: Sequence[str]) -> None:
    """Check that the run's backend can do what stages ask of it.

    Raises:
        StageError: If it cannot, or is not installed; names stage, method, backend and ability.
        ConfigError: If an object of the user's own, or the backend, cannot be imported.
    """
    backend = config.generation.backend
    abilities = abilities_of(backend)
    if any("generation" in stage(name).settings(config) for name in stages):
        check_installation(backend, config.generation.options)
    for name in stages:
        asked = _NEEDS[name](config) if name in _NEEDS else {}
        for method, needs in asked.items():
            require_abilities(backend, abilities, needs, f"{name}: {method}")


def missing_abilities(config: RunConfig, settings: SteeringConfig) -> list[str]:
    """What the run's backend cannot do of what a controller needs."""
    return sorted(steering_needs(settings) - abilities_of(config.generation.backend))


def _rollout_needs(_config: RunConfig) -> Needs:
    return {"the states at control points": frozenset({Ability.CAPTURE_STATES})}


def _validate_needs(config: RunConfig) -> Needs:
    if not config.validation.enabled:
        return {}
    needs = {Ability.CAPTURE_STATES, Ability.REPLAY_IMPULSES, Ability.ACT_AT_CONTROL_POINTS}
    return {"paired replay": frozenset(needs)}


def _tune_needs(config: RunConfig) -> Needs:
    tried = [config.example_of(mode) for mode in config.tune.modes]
    settings = tried if config.tune.enabled else [config.steering]
    return {f"mode {tried.mode}": steering_needs(tried) for tried in settings}


def _baselines_needs(config: RunConfig) -> Needs:
    methods = load_baselines(config.baselines.names).values()
    return {method.name: method.needs for method in methods}


def _evaluate_needs(config: RunConfig) -> Needs:
    """What a variant needs of whatever mode tuning may choose."""
    modes = config.tune.modes if config.tune.enabled else (config.steering.mode,)
    examples = [config.example_of(mode) for mode in modes]
    asked = {}
    for name, changes in config.evaluate.variants.items():
        varied = [changed(example, changes) for example in examples]
        needs = [steering_needs(settings) for settings in varied if settings is not None]
        asked[f"variant {name}"] = frozenset.intersection(*needs)
    return asked


_NEEDS: Mapping[str, Callable[[RunConfig], Needs]] = {
    "rollout": _rollout_needs,
    "validate": _validate_needs,
    "tune": _tune_needs,
    "baselines": _baselines_needs,
    "evaluate": _evaluate_needs,
}
"""By stage. What the others need is known when tuning has chosen."""
