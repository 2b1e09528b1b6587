"""What goes to the hub, and that nothing does unless it is meant to; the hub is a stub."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from stir_train.errors import ConfigError, StageError
from stir_train.monitoring.console import make_console
from stir_train.tools import push
from stir_train.tools.push import run_push


class Hub:
    """Stands in for the hub's interface: notes what it is asked, or refuses."""

    def __init__(self) -> None:
        self.made: list[tuple[str, bool]] = []
        self.uploaded: dict[str, list[str]] = {}
        self.refusal: Exception | None = None

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        if self.refusal is not None:
            raise self.refusal
        self.made.append((repository, private))
        return f"https://hub.invalid/{repository}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert commit_message == "stir-train run mine"
        self.uploaded[repo_id] = sorted(path.name for path in folder_path.iterdir())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()

    def write_export(
        _context: object, target: Path, *, form: str, source: str, licence: str | None
    ) -> str:
        assert source == "me/mine"
        target.mkdir()
        (target / "README.md").write_text(form)
        (target / "adapter_model.safetensors").write_bytes(b"12345")
        return ""

    monkeypatch.setattr(push, "HfApi", lambda: made)
    monkeypatch.setattr(push, "write_export", write_export)
    return made


def _push(repository: str = "me/mine", *, dry_run: bool = False) -> str:
    out = io.StringIO()
    context: Any = SimpleNamespace(console=make_console(out), config=SimpleNamespace(name="mine"))
    run_push(context, repository, form="lora", private=True, dry_run=dry_run)
    return out.getvalue()


def test_what_is_exported_is_uploaded_as_one_commit(hub: Hub) -> None:
    said = _push()
    assert hub.made == [("me/mine", True)]
    assert hub.uploaded == {"me/mine": ["README.md", "adapter_model.safetensors"]}
    assert "uploaded to https://hub.invalid/me/mine" in said


def test_a_dry_run_lists_the_files_and_uploads_nothing(hub: Hub) -> None:
    said = _push(dry_run=True)
    assert "adapter_model.safetensors  5 bytes" in said
    assert "nothing uploaded" in said
    assert not hub.made
    assert not hub.uploaded


def test_a_name_that_no_hub_takes_and_a_refusal_are_explained(hub: Hub) -> None:
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        _push("a/b/c")
    hub.refusal = OfflineModeIsEnabled("offline")
    with pytest.raises(StageError, match="HF_HUB_OFFLINE"):
        _push()
    response: Any = SimpleNamespace(
        headers={}, request=None, status_code=403, url="https://hub.invalid", text=""
    )
    hub.refusal = HfHubHTTPError("403 forbidden", response=response)
    with pytest.raises(StageError, match="hf auth login"):
        _push()
    assert not hub.uploaded
