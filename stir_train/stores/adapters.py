"""Where a trained adapter lies in its stage, and in a folder that other tools load."""

from __future__ import annotations

from pathlib import Path

from stir_train.artifacts.run_dir import StageDir

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
ADAPTER_DIRECTORY = "lora"


def adapter_of(stage: StageDir, *, prefix: str = "") -> Path:
    """The adapter's directory in a finished stage, both its files verified.

    Raises:
        ArtifactError: If the stage is unfinished, or one of them is missing or altered.
    """
    for name in ADAPTER_FILES:
        stage.file(f"{prefix}{ADAPTER_DIRECTORY}/{name}")
    return stage.path / prefix / ADAPTER_DIRECTORY
