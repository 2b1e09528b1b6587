"""The root configuration: one run, all its stages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import Field, PositiveFloat, ValidationError, model_validator

from stir_train.config.base import FrozenConfig
from stir_train.config.effort import Effort, with_effort
from stir_train.config.external import ExternalConfig
from stir_train.config.inputs import SPREAD, ModelConfig, SplitsConfig, TaskConfig
from stir_train.config.learning import DistillConfig, IterateConfig, TrainConfig
from stir_train.config.places import Place, estimated_at
from stir_train.config.pretrained import with_pretrained
from stir_train.config.stages import (
    BaselinesConfig,
    BasisConfig,
    ClusterConfig,
    ControlPointConfig,
    DirectionsConfig,
    EvaluateConfig,
    GenerationConfig,
    HarvestConfig,
    RolloutConfig,
    TrackingConfig,
    TuneConfig,
    UtilityConfig,
    ValidationConfig,
    ValueConfig,
)
from stir_train.config.steering import (
    MODES,
    AnySteering,
    JudgedSteering,
    OneBlockSteering,
    ScaledSteering,
    SteeringConfig,
    SteeringSettings,
    ValueSteering,
    VectorSteering,
    changed,
    steering_for,
)

NUM_BASIS_CONTROLS = 3
"""Controls beside a chosen controller over the basis."""


class RunConfig(FrozenConfig):
    """Everything a run depends on."""

    name: str = Field(min_length=1, max_length=100)
    """Name of the run; its directory is `output_dir/name`."""
    output_dir: Path = Path("runs")
    """Where run directories live."""
    seed: int = Field(default=0, ge=0)
    """Seeds sampling noise, the value head and distillation."""
    num_threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of PyTorch; results are bitwise repeatable only for a fixed number."""
    effort: Effort = "standard"
    """How much is spent: sets the sizes of harvest, validation, tuning, evaluation and distillation that
    are not set themselves. `quick` is a first look; a figure to publish takes `standard` or more."""
    reuse_greedy: bool = True
    """Tuning and evaluation decode a controller's answers only from where it first acts, since all before is
    greedy decoding's. Off, everything is decoded from the beginning: slower, and equal but for rounding."""
    warn_hours: PositiveFloat = 12.0
    """`--dry-run` warns if it measures that the run takes longer than this."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    splits: SplitsConfig = SplitsConfig()
    control_points: ControlPointConfig = ControlPointConfig()
    generation: GenerationConfig = GenerationConfig()
    rollout: RolloutConfig = RolloutConfig()
    external: ExternalConfig = ExternalConfig()
    directions: DirectionsConfig = DirectionsConfig()
    harvest: HarvestConfig = HarvestConfig()
    basis: BasisConfig = BasisConfig()
    validation: ValidationConfig = ValidationConfig()
    value: ValueConfig = ValueConfig()
    utility: UtilityConfig = UtilityConfig()
    steering: AnySteering = ValueSteering()
    tune: TuneConfig = TuneConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    distill: DistillConfig = DistillConfig()
    iterate: IterateConfig = IterateConfig()
    train: TrainConfig = TrainConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _effort_and_model_fill_in(cls, values: Any) -> Any:
        return with_pretrained(with_effort(values)) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name must be letters, digits, '.', '_' or '-', not {self.name!r}")
        own = self.steering.depth if isinstance(self.steering, OneBlockSteering) else None
        steered = {d for d in (own, *self.tune.depths) if d is not None}
        unknown = sorted(steered - set(self.harvest.depths))
        if unknown:
            raise ValueError(
                f"steering.depth and tune.depths must be among harvest.depths "
                f"{list(self.harvest.depths)}; not harvested: {unknown}"
            )
        self._require_custom()
        self._require_variants()
        self._require_directions()
        self._require_external()
        if self.tune.num_shortlisted is not None and not self.validation.enabled:
            raise ValueError(
                "tune.num_shortlisted: settings are ranked by the log of validation, and "
                "validation.enabled is false; enable it, or leave tune.num_shortlisted out"
            )
        if self.model.sharding != "none" and self.distill.enabled and self.train.zero_stage != 3:
            raise ValueError(
                f"model.sharding={self.model.sharding} is for a model that one process cannot hold, and "
                f"distill would hold it whole: set train.zero_stage=3, or distill.enabled=false"
            )
        if self.model.device == SPREAD and self.distill.enabled:
            raise ValueError(
                "model.device=spread decodes and cannot train: set distill.enabled=false, or hold the "
                "model with model.sharding"
            )
        if self.model.sharding != "none" and self.baselines.names:
            raise ValueError(
                "baselines read and edit whole models: take them out, or model.sharding"
            )
        return self

    def _require_custom(self) -> None:
        """Check that a controller of the user's own is both named and tried."""
        if "custom" in self.tune.modes and self.steering.mode != "custom":
            raise ValueError(
                "tune.modes: custom tries the controller that steering names, and steering.mode is "
                f"{self.steering.mode}; set steering.mode=custom and steering.controller"
            )
        if self.steering.mode == "custom" and self.tune.enabled and "custom" not in self.tune.modes:
            raise ValueError(
                "steering.mode: custom would never be tried: add it to tune.modes, or set "
                "tune.enabled=false to use it as it stands"
            )

    def _require_variants(self) -> None:
        """Check that every variant changes settings of some mode that may be chosen."""
        modes = self.tune.modes if self.tune.enabled else (self.steering.mode,)
        for name, changes in self.evaluate.variants.items():
            where, mode = f"evaluate.variants.{name}", changes.get("mode")
            if mode is not None and mode not in MODES:
                raise ValueError(f"{where}: {mode!r} is no mode; modes: {', '.join(MODES)}")
            try:
                varied = [changed(self.example_of(m), changes) for m in modes]
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, first["loc"]))
                raise ValueError(f"{where}.{key}: {first['msg']}") from error
            if not any(varied):
                wanted = ", ".join(sorted(set(changes) - {"mode"}))
                tried = mode or ", ".join(modes)
                raise ValueError(f"{where}: no mode among {tried} has all of: {wanted}")

    def example_of(self, mode: str) -> SteeringConfig:
        """Settings of a mode that may be chosen; of `vector`, one action at every place that is tried."""
        if mode != "vector" or isinstance(self.steering, VectorSteering):
            return steering_for(mode, self.steering)
        depth = self.direction_depths[0]
        actions = [{"place": p, "depth": depth, "strength": 1.0} for p in self.tune.vectors]
        return steering_for(mode, self.steering, {"actions": actions})

    def _require_directions(self) -> None:
        """Check that vectors act where there are directions."""
        if isinstance(self.steering, VectorSteering):
            depths = {action.depth for action in self.steering.actions}
            if unknown := sorted(depths - set(self.direction_depths)):
                raise ValueError(
                    f"steering.actions: no directions at depths {unknown}; directions.depths (or "
                    f"harvest.depths) are {list(self.direction_depths)}"
                )
        if self.steers_along_gradients and (
            missing := sorted(set(self.harvest.depths) - set(self.direction_depths))
        ):
            raise ValueError(
                f"directions.depths: basis.directions=reward_gradient differentiates every harvested block, "
                f"and depths {missing} of harvest.depths are not among them; add them, or leave "
                "directions.depths empty"
            )
        if self.makes_directions and not self.direction_places:
            raise ValueError(
                "directions.places: no place is named, and no vector is tried: name one"
            )
        for setting, places in (
            ("tune.vectors", self._tuned_places),
            ("steering.actions", self._given_places),
            ("evaluate.variants", self._varied_places),
        ):
            estimated = self.estimated_places
            if left_out := [place for place in places if estimated_at(place) not in estimated]:
                raise ValueError(
                    f"{setting}: no direction is estimated at {', '.join(left_out)}; directions.places are "
                    f"{', '.join(self.directions.places)}: add what is missing, or leave them empty"
                )
        steps = self.directions
        if self.makes_directions and steps.num_steps > 1:
            stepped = set(map(estimated_at, steps.step_norms))
            if stepped.isdisjoint(self.estimated_places):
                raise ValueError(
                    f"directions.step_norms: later steps sample under vectors at {', '.join(steps.step_norms)}, and "
                    f"directions are estimated at {', '.join(self.direction_places)}: name a norm for one of these"
                )

    def _require_external(self) -> None:
        """Check that rollouts from elsewhere can be read as the run's other states are."""
        if not self.external.is_used:
            return
        if self.generation.backend != "transformers":
            raise ValueError(
                f"external: its states are read by transformers, those of other stages by "
                f"generation.backend={self.generation.backend}, and a basis or head takes states of one "
                "source: set generation.backend=transformers"
            )
        if self.model.sharding == "zero3":
            raise ValueError(
                "external: every process reads completions by itself, and model.sharding=zero3 makes "
                "processes wait for one another: use tensor or none"
            )
        if self.external.server is not None and self.model.sharding != "none":
            raise ValueError(
                "external.server: the processes that hold a sharded model together would each ask it: "
                "sample into a file and set external.file, or set model.sharding=none"
            )

    @property
    def direction_depths(self) -> tuple[float, ...]:
        """Depths of the blocks that get directions."""
        return self.directions.depths or self.harvest.depths

    @property
    def direction_places(self) -> tuple[Place, ...]:
        """Where directions are wanted: where vectors may act, and at control points for a basis of gradients."""
        for_basis: tuple[Place, ...] = ("control_point",) if self.steers_along_gradients else ()
        tried = (*self._tuned_places, *self._given_places, *self._varied_places)
        return tuple(dict.fromkeys((*(self.directions.places or tried), *for_basis)))

    @property
    def estimated_places(self) -> tuple[Place, ...]:
        """Where directions are estimated, in one order however the places are named."""
        wanted = set(map(estimated_at, self.direction_places))
        return tuple(place for place in get_args(Place) if place in wanted)

    @property
    def _tuned_places(self) -> tuple[Place, ...]:
        tries_vectors = self.tune.enabled and "vector" in self.tune.modes
        return tuple(self.tune.vectors) if tries_vectors else ()

    @property
    def _given_places(self) -> tuple[Place, ...]:
        if not isinstance(self.steering, VectorSteering) or not self.uses_directions:
            return ()
        return tuple(action.place for action in self.steering.actions)

    @property
    def _varied_places(self) -> tuple[Place, ...]:
        """Those of vectors that only a variant of the evaluation has."""
        varied = [changes.get("actions") for changes in self.evaluate.variants.values()]
        actions = [action for given in varied if isinstance(given, list) for action in given]
        named = [action.get("place") for action in actions if isinstance(action, dict)]
        return tuple(place for place in get_args(Place) if place in named)

    @property
    def num_tried_settings(self) -> int:
        """How many settings tuning tries, at most: of mode `vector`, if every place has a direction."""
        if not self.tune.enabled:
            return 1
        num_settings = len(self.tried_settings)
        if "vector" in self.tune.modes:
            norms = [len(strengths) for strengths in self.tune.vectors.values()]
            num_settings += isinstance(
                self.steering, VectorSteering
            )  # the given ones are tried too
            num_settings += sum(norms) + sum(a * b for a, b in combinations(norms, 2))
        return num_settings

    @property
    def tried_settings(self) -> list[SteeringConfig]:
        """What tuning tries: every mode at every depth, and its own settings' grid there.

        Mode `vector` is not among them: where it acts is known once there are directions.
        """
        return [
            steering_for(mode, self.steering, {"depth": depth, **changes})
            for mode in dict.fromkeys(self.tune.modes)
            if mode != "vector"
            for depth in self.tune.depths or self.harvest.depths
            for changes in self._tried_changes(MODES[mode])
        ]

    def _tried_changes(self, kind: type[SteeringSettings]) -> list[dict[str, float]]:
        """A mode's grid: strengths; with a value head, all of its thresholds too."""
        if not issubclass(kind, ScaledSteering):
            return [{}]
        tune, base = self.tune, kind.like(self.steering)
        strengths = [{"strength": strength} for strength in tune.strengths]
        if not isinstance(base, JudgedSteering):
            return strengths
        offered: list[dict[str, float]] = [
            {"num_candidates": number, "num_nearest": max(base.num_nearest, 2 * number)}
            for number in tune.candidates
        ]
        return [
            {**strength, "doubt": doubt, "margin": margin, **candidates}
            for strength in strengths
            for candidates in offered or [{}]
            for margin in tune.margins or (base.margin,)
            for doubt in tune.doubts
        ]

    @property
    def modes_in_use(self) -> frozenset[str]:
        """Modes of the controllers that the run may steer with: tried, given, or a variant's."""
        tried = self.tune.modes if self.tune.enabled else (self.steering.mode,)
        varied = (changes.get("mode") for changes in self.evaluate.variants.values())
        return frozenset([*tried, *(mode for mode in varied if isinstance(mode, str))])

    @property
    def needs_basis(self) -> bool:
        """Whether some mode in use steers by the control basis; if none does, none is made."""
        return bool(self.modes_in_use - {"vector", "none"})

    @property
    def ranks_by_replays(self) -> bool:
        """Whether tuning leaves out settings for what the log of validation says of them."""
        is_asked = self.tune.enabled and self.tune.num_shortlisted is not None
        return is_asked and self.needs_basis

    @property
    def uses_directions(self) -> bool:
        """Whether some mode in use steers by reward-gradient directions."""
        return "vector" in self.modes_in_use

    @property
    def steers_along_gradients(self) -> bool:
        """Whether there is a control basis, and its entries steer along reward gradients."""
        return self.needs_basis and self.basis.directions == "reward_gradient"

    @property
    def makes_directions(self) -> bool:
        """Whether recorded rollouts are differentiated."""
        return self.uses_directions or self.steers_along_gradients

    @property
    def num_controls(self) -> int:
        """Controls of the held-out comparison, at most."""
        of_basis = NUM_BASIS_CONTROLS * self.needs_basis
        # Random vectors, the estimate from shuffled rewards, and the difference of mean states.
        of_vectors = (self.evaluate.num_random_vectors + 2) * self.uses_directions
        return self.evaluate.controls * max(of_basis, of_vectors)

    @property
    def num_steered_methods(self) -> int:
        """Methods of the held-out comparison that a controller answers, at most."""
        num_chosen = len(self.tune.modes) if self.tune.enabled else 1
        return self.needs_basis + self.num_controls + num_chosen

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.output_dir / self.name
