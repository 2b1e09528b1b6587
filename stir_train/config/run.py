"""The root configuration: one run, all its stages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from stir_train.config.base import FrozenConfig
from stir_train.config.inputs import SPREAD, ModelConfig, SplitsConfig, TaskConfig
from stir_train.config.learning import DistillConfig, IterateConfig, TrainConfig
from stir_train.config.stages import (
    VALUE_MODES,
    BaselinesConfig,
    BasisConfig,
    ClusterConfig,
    ControlPointConfig,
    EvaluateConfig,
    GenerationConfig,
    HarvestConfig,
    RolloutConfig,
    SteeringConfig,
    TrackingConfig,
    TuneConfig,
    ValidationConfig,
    ValueConfig,
)


class RunConfig(FrozenConfig):
    """Everything a run depends on."""

    name: str = Field(min_length=1, max_length=100)
    """Name of the run; its directory is `output_dir/name`."""
    output_dir: Path = Path("runs")
    """Where run directories live."""
    seed: int = Field(default=0, ge=0)
    """Seeds sampling noise, the value head and distillation."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads of PyTorch; results are bitwise repeatable only for a fixed number."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    splits: SplitsConfig = SplitsConfig()
    control_points: ControlPointConfig = ControlPointConfig()
    generation: GenerationConfig = GenerationConfig()
    rollout: RolloutConfig = RolloutConfig()
    harvest: HarvestConfig = HarvestConfig()
    basis: BasisConfig = BasisConfig()
    validation: ValidationConfig = ValidationConfig()
    value: ValueConfig = ValueConfig()
    steering: SteeringConfig = SteeringConfig()
    tune: TuneConfig = TuneConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    distill: DistillConfig = DistillConfig()
    iterate: IterateConfig = IterateConfig()
    train: TrainConfig = TrainConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name must be letters, digits, '.', '_' or '-', not {self.name!r}")
        steered = {d for d in (self.steering.depth, *self.tune.depths) if d is not None}
        unknown = sorted(steered - set(self.harvest.depths))
        if unknown:
            raise ValueError(
                f"steering.depth and tune.depths must be among harvest.depths "
                f"{list(self.harvest.depths)}; not harvested: {unknown}"
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

    @property
    def tried_settings(self) -> list[SteeringConfig]:
        """What tuning tries: every mode, depth and strength; with a head, all of its thresholds too."""
        tune, steering = self.tune, self.steering
        offered: list[dict[str, int]] = [
            {"num_candidates": number, "num_nearest": max(steering.num_nearest, 2 * number)}
            for number in tune.candidates
        ]
        judged = [
            {"value_doubt": doubt, "value_margin": margin, **candidates}
            for candidates in offered or [{}]
            for margin in tune.margins or (steering.value_margin,)
            for doubt in tune.doubts
        ]
        return [
            steering.model_copy(update={"mode": mode, "strength": strength, "depth": depth, **rest})
            for mode in tune.modes
            for depth in tune.depths or self.harvest.depths
            for strength in tune.strengths
            for rest in (judged if mode in VALUE_MODES else [{}])
        ]

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.output_dir / self.name
