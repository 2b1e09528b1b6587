"""Where a model's files are: a path, a hub id or an embedded name; and what went wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from stir_train.config.inputs import ModelConfig
from stir_train.config.pretrained import EMBEDDED_PREFIX
from stir_train.errors import ModelError, StirError

EMBEDDED_ROOT = Path(__file__).resolve().parent.parent / "tasks" / "models"
GGUF_SUFFIX = ".gguf"


def resolve_model_path(name: str) -> str:
    """Turn ``embedded/NAME`` into the directory shipped with the package; leave the rest alone.

    Raises:
        ModelError: If no such model is embedded.
    """
    if not name.startswith(EMBEDDED_PREFIX):
        return name
    path = EMBEDDED_ROOT / name.removeprefix(EMBEDDED_PREFIX)
    if not (path / "config.json").is_file():
        known = ", ".join(sorted(p.parent.name for p in EMBEDDED_ROOT.glob("*/config.json")))
        raise ModelError(
            f"model.name: no embedded model {name!r}; embedded models: {known or 'none'}"
        )
    return str(path)


def locate_model(config: ModelConfig) -> tuple[str, str | None]:
    """Directory or hub id, and the GGUF file in it, named by itself or at the end of the path.

    Raises:
        ModelError: If the file is not there.
    """
    path, gguf_file = resolve_model_path(config.name), config.gguf_file
    if gguf_file is None and path.endswith(GGUF_SUFFIX):
        path, gguf_file = str(Path(path).parent), Path(path).name
    if gguf_file is not None and Path(path).is_dir() and not (Path(path) / gguf_file).is_file():
        held = ", ".join(sorted(file.name for file in Path(path).glob(f"*{GGUF_SUFFIX}")))
        raise ModelError(f"model.gguf_file: no {gguf_file} in {path}; it holds {held or 'no GGUF'}")
    return path, gguf_file


def pretrained_arguments(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Path or id, and the arguments that every way of loading it shares.

    Raises:
        ModelError: If a path is given and nothing is there.
    """
    path, gguf_file = locate_model(config)
    is_local = Path(path).is_dir()
    if not is_local and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ModelError(f"model.name: no directory {path!r}")
    transformers_logging.disable_progress_bar()  # our own bars show what matters
    return path, {
        "revision": None if is_local else config.revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": config.attention,
        **({"gguf_file": gguf_file} if gguf_file else {}),
    }


def which_files(settings: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments of ``from_pretrained``, those that say which files are read."""
    named = ("revision", "trust_remote_code", "gguf_file")
    return {key: settings[key] for key in named if key in settings}


@contextmanager
def explained(config: ModelConfig) -> Iterator[None]:
    """Say which setting was at fault when transformers cannot load a model.

    Files that are damaged, or say what is not so, make the libraries raise whatever they came upon.

    Raises:
        ModelError: For whatever the libraries raise inside.
    """
    try:
        yield
    except StirError:
        raise
    except Exception as error:
        where = f" at revision {config.revision}" if config.revision else ""
        known = isinstance(error, OSError | ValueError | ImportError)
        said = str(error) if known else f"{type(error).__name__}: {error}"
        hint = "" if known else "; its files are damaged, or are not what its config.json describes"
        if "scaled_dot_product_attention" in said:
            hint = " Set model.attention=eager."
        raise ModelError(f"model.name: cannot load {config.name!r}{where}: {said}{hint}") from error
