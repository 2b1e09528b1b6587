"""Open a finished run for use: its own directory, a folder that was exported, or a repository on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stir_train.config.steering import SteeringConfig
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import render_prompts
from stir_train.errors import ArtifactError
from stir_train.models.identity import identify_model, weights_by_content
from stir_train.steering.artifacts import SteeringArtifacts
from stir_train.stores.published import PUBLISHED_FILE, PublishedFiles, open_published
from stir_train.stores.steering import SteeringStore
from stir_train.stores.steering_files import SteeringFiles, run_files


@dataclass(frozen=True)
class LoadedRun:
    """What is needed to generate as a run does, but for the model itself.

    Attributes:
        files: Of the run, verified.
    """

    files: SteeringFiles

    @property
    def base_model(self) -> str:
        """What ``from_pretrained`` loads the base by; a bare name where it is on no hub."""
        return self.files.base_model()

    @property
    def choice(self) -> SteeringConfig:
        """The controller that tuning chose; mode ``none`` never acts.

        Raises:
            ArtifactError: If the run is not tuned yet.
        """
        return self.files.choice()

    @property
    def adapter(self) -> Path | None:
        """Directory of the student for ``PeftModel.from_pretrained``; None where there is none."""
        return self.files.adapter()

    def prompt_ids(
        self, questions: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[int]]:
        """Token ids of prompts, rendered as the run's own were; of unequal length, not padded.

        Raises:
            DataError: If the tokenizer's chat template cannot render them.
        """
        problems = [SourceProblem(question, "", question) for question in questions]
        prompts = render_prompts(problems, self.files.task(), tokenizer)
        return [list(prompt.token_ids) for prompt in prompts]

    def artifacts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> SteeringArtifacts:
        """The run's controllers for a model that the user loaded.

        Raises:
            ArtifactError: If the run was made for another model.
        """
        identity = identify_model(model, tokenizer)
        if isinstance(self.files, PublishedFiles):
            commit = getattr(model.config, "_commit_hash", None)
            by_content = weights_by_content(model.name_or_path or "", commit)
            identity = self.files.require_model(identity, by_content)
        return SteeringArtifacts(SteeringStore(self.files, identity))


def load_run(source: str | Path, *, revision: str | None = None) -> LoadedRun:
    """Open a run by the directory it was made in, a folder of ``export --format run``, or a hub repository.

    A repository is downloaded, or taken from the cache when offline; the checksums that it records are verified.

    Args:
        source: A path, or ``OWNER/NAME``; what is a directory here is not looked for on the hub.
        revision: Branch, tag or commit of the repository.

    Raises:
        ArtifactError: If there is no such run, it cannot be downloaded, or a file is missing or damaged.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _downloaded(str(source), revision)
    files: SteeringFiles
    files = open_published(folder) if (folder / PUBLISHED_FILE).is_file() else run_files(folder)
    return LoadedRun(files)


def _downloaded(source: str, revision: str | None) -> Path:
    """The repository's folder in the hub's cache.

    Raises:
        ArtifactError: If it is not to be had.
    """
    neither = f"{source} is no directory here, and"
    try:
        folder = Path(snapshot_download(source, revision=revision))
    except HFValidationError as error:
        raise ArtifactError(f"{neither} no repository OWNER/NAME on the hub") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ArtifactError(
            f"{neither} the hub cannot be reached for a repository of that name, which is not in the cache; "
            "unset HF_HUB_OFFLINE, or download it elsewhere and give the folder"
        ) from error
    except HfHubHTTPError as error:
        raise ArtifactError(
            f"{neither} the hub does not give a repository of that name: {error}"
        ) from error
    if not (folder / PUBLISHED_FILE).is_file():
        raise ArtifactError(
            f"{source}: that repository holds no {PUBLISHED_FILE}, so it is not one that `stir-train push` made"
        )
    return folder
