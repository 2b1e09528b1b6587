"""The files and settings that steering needs, wherever they lie: the directory of a run, or what was published of it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from stir_train.artifacts.run_dir import CONFIG_FILE, RunDir
from stir_train.config.inputs import TaskConfig
from stir_train.config.stages import ControlPointConfig, UtilityConfig
from stir_train.config.steering import SteeringConfig
from stir_train.config.yaml_text import read_yaml
from stir_train.errors import ArtifactError
from stir_train.models.locate import resolve_model_path
from stir_train.stores.adapters import adapter_of
from stir_train.stores.directions import DIRECTIONS_FILE
from stir_train.stores.reports import load_report
from stir_train.types.results import TuneReport

BASIS_FILE = "basis.safetensors"


@runtime_checkable
class SteeringFiles(Protocol):
    """What a finished run offers to steer with, as files; every path that is given was verified."""

    @property
    def path(self) -> Path:
        """The directory of the run, or of what was published of it."""

    def base_model(self) -> str:
        """Hub id or path of the base; where it was published from a path and is on no hub, its bare name."""

    def task(self) -> TaskConfig:
        """How its prompts were rendered."""

    def control_points(self) -> ControlPointConfig:
        """Where its rollouts had their control points."""

    def choice(self) -> SteeringConfig:
        """The settings that tuning froze, their depths always given."""

    def utility(self) -> UtilityConfig:
        """What an answer was worth when the basis was validated."""

    def file(self, name: str) -> Path:
        """The file of a basis, a value head or directions.

        Raises:
            ArtifactError: If it is not there, or was altered.
        """

    def adapter(self) -> Path | None:
        """Directory of the student's adapter; None where there is no student."""


class RunFiles:
    """`SteeringFiles` of a run's directory."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self._run_dir.path

    def base_model(self) -> str:
        """As the run's configuration names it."""
        held = read_yaml(self.path / CONFIG_FILE).value
        return resolve_model_path(held["model"]["name"])

    def task(self) -> TaskConfig:
        """The task settings that the rollout stage was made with."""
        return TaskConfig.model_validate(self._run_dir.stage("rollout").settings()["task"])

    def control_points(self) -> ControlPointConfig:
        """The control points that the rollout stage was made with."""
        settings = self._run_dir.stage("rollout").settings()
        return ControlPointConfig.model_validate(settings["control_points"])

    def choice(self) -> SteeringConfig:
        """From the tune stage's report."""
        return load_report(self._run_dir.stage("tune"), TuneReport).chosen

    def utility(self) -> UtilityConfig:
        """From the validate stage's settings."""
        settings = self._run_dir.stage("validate").settings()
        return UtilityConfig.model_validate(settings["utility"])

    def file(self, name: str) -> Path:
        """The file in the stage that made it."""
        made_by = {BASIS_FILE: "validate", DIRECTIONS_FILE: "directions"}.get(name, "value")
        return self._run_dir.stage(made_by).file(name)

    def adapter(self) -> Path | None:
        """That of the distill stage."""
        stage = self._run_dir.stage("distill")
        return adapter_of(stage) if stage.is_complete else None


def run_files(path: Path) -> RunFiles:
    """The files of a run's directory.

    Raises:
        ArtifactError: If there is no such directory.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path} is no run directory")
    return RunFiles(RunDir(path))
