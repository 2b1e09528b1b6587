"""The configuration that a path names: a file, or the directory of a run, which knows its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.errors import ConfigError

CONFIG_NAME = "config.yaml"


def config_at(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration, checked; a run directory's own is for the place where it is now.

    Args:
        path: The file or the directory.
        overrides: Settings to change in it.

    Raises:
        ConfigError: If there is none, or it is not valid.
    """
    if not path.is_dir():
        return load_config(RunConfig, path, overrides)
    if not (path / CONFIG_NAME).is_file():
        raise ConfigError(
            f"{path}: expected a configuration (CONFIG.yaml) or the directory of a run; this directory "
            f"holds no {CONFIG_NAME}"
        )
    config = load_config(RunConfig, path / CONFIG_NAME, overrides)
    renamed = any(override.startswith(("name=", "output_dir=")) for override in overrides)
    if renamed or config.directory.resolve() == path.resolve():
        return config
    moved = path.resolve()
    return config.model_copy(update={"name": moved.name, "output_dir": moved.parent})
