"""A folder that holds what a run steers with and its student, and nothing else of the run: what `push` uploads.

``steering.json`` says what the controller is, for which model, and the checksum of every other file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator

from stir_train.artifacts.atomic import file_sha256
from stir_train.config.base import FrozenConfig
from stir_train.config.inputs import TaskConfig
from stir_train.config.stages import ControlPointConfig, UtilityConfig
from stir_train.config.steering import AnySteering, CustomSteering, SteeringConfig
from stir_train.errors import ArtifactError
from stir_train.models.identity import ModelIdentity
from stir_train.models.locate import resolve_model_path
from stir_train.stores.adapters import ADAPTER_FILES

PUBLISHED_FILE = "steering.json"
_PROMPT_FIELDS = (
    "template",
    "system_prompt",
    "chat_template",
    "chat_template_kwargs",
    "prompt_date",
)
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""Of a file in the folder itself: a manifest that names another place is refused."""


class PublishedFile(FrozenConfig):
    """What a file must be."""

    num_bytes: int
    """Its size."""
    sha256: str
    """Of its content."""

    @classmethod
    def of(cls, path: Path) -> PublishedFile:
        """What a file is now."""
        return cls(num_bytes=path.stat().st_size, sha256=file_sha256(path))


class PublishedRun(FrozenConfig):
    """What ``steering.json`` holds."""

    format: Literal[1] = 1
    """Of this file."""
    base_model: str
    """Hub id of the base, or its bare name; never a path."""
    identity: ModelIdentity
    """Of the base, as the run knew it."""
    weights_sha256: tuple[str, ...]
    """The base's weights, by hub id and commit, by content, or both (`weights_by_content`)."""
    choice: AnySteering
    """The controller that tuning froze."""
    control_points: ControlPointConfig
    """Where it may act."""
    utility: UtilityConfig | None
    """What an answer was worth when the basis was validated; None without a basis."""
    prompt: dict[str, JsonValue]
    """How prompts were rendered: settings of `TaskConfig`."""
    files: dict[FileName, PublishedFile]
    """Every other file but the card."""

    @field_validator("choice")
    @classmethod
    def _is_no_code(cls, choice: SteeringConfig) -> SteeringConfig:
        if isinstance(choice, CustomSteering):
            raise ValueError("a controller of your own is code, which is not published with a run")
        return choice


def prompt_settings(task: TaskConfig) -> dict[str, JsonValue]:
    """The settings of a task that say how a prompt is rendered."""
    return task.model_dump(mode="json", include=set(_PROMPT_FIELDS))


class PublishedFiles:
    """`SteeringFiles` of such a folder."""

    def __init__(self, path: Path, held: PublishedRun) -> None:
        self._path, self.held = path, held

    @property
    def path(self) -> Path:
        """The folder that was exported or downloaded."""
        return self._path

    def base_model(self) -> str:
        """Hub id or path of the base; of an embedded model, the directory that it is shipped in."""
        return resolve_model_path(self.held.base_model)

    def task(self) -> TaskConfig:
        """Its way of rendering prompts; a task's other settings are not published."""
        return TaskConfig.model_validate(self.held.prompt)

    def control_points(self) -> ControlPointConfig:
        """The control points that ``steering.json`` names."""
        return self.held.control_points

    def choice(self) -> SteeringConfig:
        """The settings of the controller that ``steering.json`` holds."""
        return self.held.choice

    def utility(self) -> UtilityConfig:
        """As it was published.

        Raises:
            ArtifactError: If the run had no basis.
        """
        if self.held.utility is None:
            raise ArtifactError(f"{self._path} holds no utility: its run validated no basis")
        return self.held.utility

    def file(self, name: str) -> Path:
        """A file that was verified when the folder was opened.

        Raises:
            ArtifactError: If it was not published.
        """
        if name not in self.held.files:
            raise ArtifactError(
                f"{self._path} holds no {name}: what its own controller reads is published "
                f"({', '.join(self.held.files) or 'nothing'}); the run's directory has the rest"
            )
        return self._path / name

    def adapter(self) -> Path | None:
        """The folder itself, where there is a student."""
        return self._path if ADAPTER_FILES[0] in self.held.files else None

    def require_model(self, found: ModelIdentity, by_content: str) -> ModelIdentity:
        """Check that a model is the base; its identity as the files know it.

        Args:
            found: The model's.
            by_content: Its weights' hash by content; empty if that is not known.

        Raises:
            ArtifactError: Naming the parts that differ.
        """
        made_for = self.held.identity
        is_same = {found.weights_sha256, by_content} & set(self.held.weights_sha256)
        parts = made_for.parts()
        differing = [
            part
            for part, value in found.parts().items()
            if value != parts[part] and not (part == "model weights" and is_same)
        ]
        if differing:
            raise ArtifactError(
                f"{self._path} was made for model {self.held.base_model!r}, not for {found.name!r}: another "
                f"{', '.join(differing)}. Load the base at the commit that the card names"
            )
        return made_for


def open_published(folder: Path) -> PublishedFiles:
    """Read such a folder, every file's checksum verified.

    Raises:
        ArtifactError: If it is none, or a file is missing or was altered.
    """
    path = folder / PUBLISHED_FILE
    try:
        held = PublishedRun.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        raise ArtifactError(f"{path} is not what this version reads: {error}") from error
    for name, expected in held.files.items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing; download it again")
        if PublishedFile.of(file) != expected:
            raise ArtifactError(
                f"{file} is damaged: its sha256 is not the one in {PUBLISHED_FILE}; download it again"
            )
    return PublishedFiles(folder, held)
