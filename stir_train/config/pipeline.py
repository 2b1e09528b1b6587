"""The stages of a run, each declared once; every list of stages is read from here. Torch-free.

A stage's name is its verb on the command line, its directory in the run, and its heading in reports.
To add one, write ``recipes/NAME.py`` with a ``run`` function and declare it in `STAGES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from stir_train.config import plans
from stir_train.config.inputs import SplitName
from stir_train.config.run import RunConfig
from stir_train.config.steering import ValueSteering

Settings = Mapping[str, BaseModel | Any]
"""What a stage depends on, by name: sections of the configuration, or single JSON-ready values."""


def _always(_config: RunConfig) -> bool:
    return True


def _nothing(_config: RunConfig) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: Verb, directory and heading.
        summary: What it does, in a sentence for ``--help``.
        own_settings: All that it reads of the configuration, since other settings may change between
            attempts; but for the seed and the threads, which every stage depends on, and the task and the
            control points, which must be the rollouts'. ``tests/test_declared_settings.py`` checks it.
        plan: What it would do under a configuration, with counts, for ``--dry-run``.
        reads: Stages that it reads, of which those that are off are left out.
        unread: Of these, the ones that it has no use for under a configuration.
        splits: Splits of the problems that it opens.
        decodes: Whether it runs the model.
        is_on: Whether a configuration asks for it.
        uses_every_node: Whether it has work for every process; others have work for one.
        takes_workers: Whether processes that share only the disk, as in a job array, can make its chunks.
        job: The SLURM job that runs it; its own name if empty.
    """

    name: str
    summary: str
    own_settings: Callable[[RunConfig], Settings]
    plan: Callable[[RunConfig], str]
    reads: tuple[str, ...] = ()
    unread: Callable[[RunConfig], tuple[str, ...]] = _nothing
    splits: tuple[SplitName, ...] = ()
    decodes: bool = True
    is_on: Callable[[RunConfig], bool] = _always
    uses_every_node: bool = False
    takes_workers: bool = False
    job: str = ""

    @property
    def run(self) -> str:
        """Import path of the function that makes it."""
        return f"stir_train.recipes.{self.name}:run"

    @property
    def job_name(self) -> str:
        """The SLURM job that runs it."""
        return self.job or self.name

    def settings(self, config: RunConfig) -> Settings:
        """What it depends on; the bytes of every stage also depend on the seed and the threads."""
        return {
            "seed": config.seed,
            "num_threads": config.num_threads,
            **self.own_settings(config),
        }

    def sources(self, config: RunConfig) -> tuple[str, ...]:
        """The stages that it reads under a configuration, in pipeline order."""
        unread = self.unread(config)
        return tuple(
            name for name in self.reads if name not in unread and stage(name).is_on(config)
        )


def _answering(config: RunConfig) -> Settings:
    """Settings of what answers and grades: the budget, sampling, the reward, and the harvested depths."""
    return {
        "generation": config.generation,
        "rollout": config.rollout,
        "depths": config.harvest.depths,
    }


def _directions(config: RunConfig) -> Settings:
    """What directions are made by; where they are estimated may come from tuning's settings."""
    resolved = config.directions.model_copy(update={"places": config.estimated_places})
    return {"directions": resolved}


def _steering(config: RunConfig) -> Settings:
    """Settings of what answers under a controller: whether there is a basis, of what, and directions."""
    directions = _directions(config) if config.uses_directions else {}
    of_basis = {"steers_along_gradients": True} if config.steers_along_gradients else {}
    return {**_answering(config), "needs_basis": config.needs_basis, **directions, **of_basis}


def _rollout_settings(config: RunConfig) -> Settings:
    external = config.external
    return {
        **_answering(config),
        **({"external": external.sampler(config.model.name)} if external.is_used else {}),
        "task": config.task,
        "control_points": config.control_points,
    }


def _basis_settings(config: RunConfig) -> Settings:
    if not config.steers_along_gradients:
        return {"basis": config.basis}
    return {
        "basis": config.basis,
        **_directions(config),
        "max_new_tokens": config.generation.max_new_tokens,
    }


def _validate_settings(config: RunConfig) -> Settings:
    steering = ValueSteering.like(config.steering, {"depth": None, "strength": 1.0})
    return {
        **_answering(config),
        "validation": config.validation,
        "value": config.value,
        "steering": steering,
        "utility": config.utility,
    }


def _value_settings(config: RunConfig) -> Settings:
    return {
        **_answering(config),
        "value": config.value,
        "learns_from_replays": config.validation.enabled,
    }


def _tune_settings(config: RunConfig) -> Settings:
    return {
        **_steering(config),
        "tune": config.tune,
        "steering": config.steering,
        "utility": config.utility,
        "num_bootstrap": config.evaluate.num_bootstrap,
        "reuse_greedy": config.reuse_greedy,
    }


def _distill_settings(config: RunConfig) -> Settings:
    compares = "compared" in _samples_of_students(config).values()
    reward = {"reward": config.directions.worth} if compares else {}
    return {**_steering(config), "distill": config.distill, **reward}


def _baselines_settings(config: RunConfig) -> Settings:
    return {
        **_answering(config),
        "needs_basis": config.needs_basis,
        "baselines": config.baselines,
        "utility": config.utility,
        "num_bootstrap": config.evaluate.num_bootstrap,
    }


def _evaluate_settings(config: RunConfig) -> Settings:
    return {
        **_steering(config),
        "evaluate": config.evaluate,
        "utility": config.utility,
        "baselines": list(config.baselines.names),
        "students": _samples_of_students(config),
        "reuse_greedy": config.reuse_greedy,
    }


def _samples_of_students(config: RunConfig) -> dict[str, str]:
    """Whose samples teach each student, the exported one, which has no name, first."""
    if not config.distill.enabled:
        return {}
    asked = {"": config.distill.objective, **config.distill.also}
    return {name: objective.samples for name, objective in asked.items()}


def _report_settings(config: RunConfig) -> Settings:
    return {
        "stages": [found.name for found in STAGES if found.is_on(config)],
        "students": _samples_of_students(config),
    }


def _needs_basis(config: RunConfig) -> bool:
    return config.needs_basis


def _distils(config: RunConfig) -> bool:
    return config.distill.enabled


BEFORE_EVALUATION = (
    "rollout",
    "directions",
    "harvest",
    "basis",
    "validate",
    "value",
    "tune",
    "steer",
    "distill",
    "baselines",
)
"""All of them: evaluation asks each which problems it was made from, and the report shows each."""

STAGES: tuple[Stage, ...] = (
    Stage(
        "rollout",
        "Sample, grade and capture rollouts of the harvest split.",
        _rollout_settings,
        plans.rollout,
        splits=("harvest",),
        uses_every_node=True,
        takes_workers=True,
    ),
    Stage(
        "directions",
        "Differentiate rollouts for directions to steer in, and test whether there are any.",
        lambda config: {**_steering(config), **_directions(config)},
        plans.directions,
        reads=("rollout",),
        splits=("harvest",),
        is_on=lambda config: config.makes_directions,
        uses_every_node=True,
    ),
    Stage(
        "harvest",
        "Contrast right and wrong rollouts at control points.",
        lambda config: {"harvest": config.harvest},
        plans.harvest,
        reads=("rollout",),
        decodes=False,
        is_on=_needs_basis,
    ),
    Stage(
        "basis",
        "Select the control basis and diagnose the contrasts.",
        _basis_settings,
        plans.basis,
        reads=("directions", "harvest"),
        unread=lambda config: () if config.steers_along_gradients else ("directions",),
        decodes=False,
        job="harvest",
        is_on=_needs_basis,
    ),
    Stage(
        "validate",
        "Measure what each entry of the basis causes, by paired replay.",
        _validate_settings,
        plans.validate,
        reads=("rollout", "basis"),
        splits=("harvest",),
        uses_every_node=True,
        is_on=_needs_basis,
    ),
    Stage(
        "value",
        "Train and calibrate the value heads.",
        _value_settings,
        plans.value,
        reads=("rollout", "basis", "validate"),
        decodes=False,
        is_on=_needs_basis,
    ),
    Stage(
        "tune",
        "Choose the controller on the tune split.",
        _tune_settings,
        plans.tune,
        reads=("directions", "basis", "validate", "value"),
        unread=lambda config: () if config.ranks_by_replays else ("basis",),
        splits=("tune",),
        uses_every_node=True,
    ),
    Stage(
        "steer",
        "Sample steered rollouts of the harvest split.",
        lambda config: {**_steering(config), "num_samples": config.distill.num_samples},
        plans.steer,
        reads=("directions", "validate", "value", "tune"),
        splits=("harvest",),
        is_on=_distils,
        uses_every_node=True,
        takes_workers=True,
    ),
    Stage(
        "distill",
        "Distil steered rollouts into a LoRA adapter, export and verify it.",
        _distill_settings,
        plans.distill,
        reads=("rollout", "directions", "validate", "value", "tune", "steer"),
        decodes=False,
        is_on=_distils,
        uses_every_node=True,
    ),
    Stage(
        "baselines",
        "Tune other methods on the tune split.",
        _baselines_settings,
        plans.baselines,
        reads=("rollout", "validate", "tune"),
        splits=("harvest", "tune"),
        is_on=lambda config: bool(config.baselines.names),
        uses_every_node=True,
    ),
    Stage(
        "evaluate",
        "Compare every method on the held-out test split.",
        _evaluate_settings,
        plans.evaluate,
        reads=BEFORE_EVALUATION,
        splits=("test",),
        uses_every_node=True,
    ),
    Stage(
        "report",
        "Write the run's HTML report.",
        _report_settings,
        plans.report,
        reads=(*BEFORE_EVALUATION, "evaluate"),
        decodes=False,
        job="evaluate",
    ),
)
"""In the order in which a run makes them."""

STAGE_NAMES: tuple[str, ...] = tuple(stage.name for stage in STAGES)


def stage(name: str) -> Stage:
    """The stage of a name.

    Raises:
        KeyError: If there is none; names from users are checked where they come in.
    """
    return next(stage for stage in STAGES if stage.name == name)


def lineage_of(name: str) -> tuple[str, ...]:
    """A stage and all that it was made from, in pipeline order."""
    found = {name}
    for other in reversed(STAGES[: STAGE_NAMES.index(name) + 1]):
        if other.name in found:
            found |= set(other.reads)
    return tuple(other for other in STAGE_NAMES if other in found)


def stages_off(config: RunConfig) -> frozenset[str]:
    """Names of the stages that a configuration leaves out."""
    return frozenset(stage.name for stage in STAGES if not stage.is_on(config))


def stages_from(name: str) -> tuple[str, ...]:
    """A stage and those after it, which are remade with it."""
    return STAGE_NAMES[STAGE_NAMES.index(name) :]


def settings_as_json(settings: Settings) -> dict[str, Any]:
    """Settings as a stage's record on disk holds them."""
    return {
        key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for key, value in settings.items()
    }
