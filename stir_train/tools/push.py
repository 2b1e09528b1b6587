"""Put what a finished run exports into a repository on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported lazily

from stir_train.errors import ConfigError, StageError
from stir_train.monitoring.console import good
from stir_train.runtime.context import RunContext
from stir_train.tools.export import Format, write_export


def run_push(
    context: RunContext,
    repository: str,
    *,
    form: Format,
    private: bool,
    dry_run: bool,
    licence: str | None = None,
) -> None:
    """Export to a temporary directory, which verifies an adapter again, and upload that as one commit.

    Args:
        context: The run.
        repository: ``owner/name``; made if it is not there.
        form: What is exported.
        private: Of a repository that is made.
        dry_run: Only say what would be uploaded.
        licence: As of `write_export`.

    Raises:
        ConfigError: If the hub takes no such name.
        StageError: If the hub refuses, or cannot be reached.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"{repository}: expected a repository OWNER/NAME: {error}") from error
    with TemporaryDirectory() as folder:
        target = Path(folder) / "export"
        write_export(context, target, form=form, source=repository, licence=licence)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        for path in files:
            size = path.stat().st_size
            context.console.print(f"  {path.relative_to(target)}  {size:,} bytes", soft_wrap=True)
        if dry_run:
            context.console.print(
                f"nothing uploaded: {repository} would get these {len(files)} files"
            )
            return
        where = _upload(target, repository, private=private, run=context.config.name)
    context.console.print(good(f"uploaded to {where}"), soft_wrap=True)


def _upload(folder: Path, repository: str, *, private: bool, run: str) -> str:
    """Make the repository if need be, and one commit in it; its address."""
    api = HfApi()
    try:
        where = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=f"stir-train run {run}"
        )
    except OfflineModeIsEnabled as error:
        raise StageError(
            f"{repository}: HF_HUB_OFFLINE is set, so that nothing can be uploaded; unset it"
        ) from error
    except HfHubHTTPError as error:
        raise StageError(
            f"{repository}: the hub refuses: {error}; log in with `hf auth login` by an account that may "
            "write there"
        ) from error
    return str(where)
