"""The backend that a name stands for; its package is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pydantic import JsonValue

from stir_train.config.backends import BACKENDS
from stir_train.config.import_path import load_object
from stir_train.distributed.world import World
from stir_train.errors import ConfigError
from stir_train.generation.backend import Ability, GenerationBackend
from stir_train.models.load import LoadedModel

SETTING = "generation.backend"


@dataclass(frozen=True)
class Limits:
    """Of the rows that a backend decodes side by side, and what else it is started with.

    Attributes:
        max_rows: At most so many.
        max_cache_tokens: Bound of rows times their longest possible length; None sets none.
        options: The backend's own settings.
    """

    max_rows: int
    max_cache_tokens: int | None = None
    options: Mapping[str, JsonValue] = field(default_factory=dict)


@runtime_checkable
class BackendClass(Protocol):
    """What `BACKENDS` names: a class whose objects are `GenerationBackend`s.

    Attributes:
        abilities: What it can do, known before it is started.
    """

    abilities: frozenset[Ability]

    def __call__(
        self,
        loaded: LoadedModel,
        *,
        max_rows: int,
        max_cache_tokens: int | None,
        options: Mapping[str, JsonValue],
    ) -> GenerationBackend:
        """Start it over a model."""
        ...

    def check_installation(self, options: Mapping[str, JsonValue]) -> str:
        """Make sure, without starting it, that it can work here.

        Returns:
            The version of what it generates with, if results may depend on it; else nothing.
        """
        ...

    def prepare_ranks(self, world: World, *, num_shards: int) -> None:
        """Do what all ranks of a launch must do at once before any of them starts it. Collective.

        Args:
            world: All ranks.
            num_shards: Consecutive ranks that hold a model together and start it together.
        """
        ...


def open_backend(name: str, loaded: LoadedModel, limits: Limits) -> GenerationBackend:
    """Start a backend over a model.

    Raises:
        ConfigError: If there is no backend of that name, or it cannot be imported.
        ModelError: If the backend cannot run the model.
    """
    return _backend(name)(
        loaded,
        max_rows=limits.max_rows,
        max_cache_tokens=limits.max_cache_tokens,
        options=limits.options,
    )


def abilities_of(name: str) -> frozenset[Ability]:
    """What a backend can do, without starting it.

    Raises:
        ConfigError: If there is no backend of that name, or it cannot be imported.
    """
    return _backend(name).abilities


def check_installation(name: str, options: Mapping[str, JsonValue]) -> str:
    """Make sure, without starting it, that a backend can work here; see `BackendClass`.

    Raises:
        ConfigError: If there is no backend of that name, it cannot be imported, or an option is refused.
        StageError: If what it needs is not installed.
    """
    return _backend(name).check_installation(options)


def prepare_ranks(name: str, world: World, *, num_shards: int) -> None:
    """Ready all ranks of a launch for a backend; see `BackendClass`. Collective."""
    _backend(name).prepare_ranks(world, num_shards=num_shards)


def _backend(name: str) -> BackendClass:
    if name not in BACKENDS:
        raise ConfigError(f"{SETTING}: {name!r} is none of {', '.join(sorted(BACKENDS))}")
    found = load_object(BACKENDS[name], kind=SETTING)
    if not isinstance(found, BackendClass):
        raise ConfigError(f"{SETTING}: {BACKENDS[name]} is no class with abilities")
    return found
