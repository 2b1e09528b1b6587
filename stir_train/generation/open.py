"""The backend that a name stands for; its package is imported when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from stir_train.config.backends import BACKENDS
from stir_train.config.import_path import load_object
from stir_train.errors import ConfigError
from stir_train.generation.backend import Ability, GenerationBackend
from stir_train.models.load import LoadedModel

SETTING = "generation.backend"


@dataclass(frozen=True)
class Limits:
    """Of the rows that a backend decodes side by side.

    Attributes:
        max_rows: At most so many.
        max_cache_tokens: Bound of rows times their longest possible length; None sets none.
    """

    max_rows: int
    max_cache_tokens: int | None = None


@runtime_checkable
class BackendClass(Protocol):
    """What `BACKENDS` names: a class whose objects are `GenerationBackend`s.

    Attributes:
        abilities: What it can do, known before it is started.
    """

    abilities: frozenset[Ability]

    def __call__(
        self, loaded: LoadedModel, *, max_rows: int, max_cache_tokens: int | None
    ) -> GenerationBackend:
        """Start it over a model."""
        ...


def open_backend(name: str, loaded: LoadedModel, limits: Limits) -> GenerationBackend:
    """Start a backend over a model.

    Raises:
        ConfigError: If there is no backend of that name, or it cannot be imported.
        ModelError: If the backend cannot run the model.
    """
    return _backend(name)(
        loaded, max_rows=limits.max_rows, max_cache_tokens=limits.max_cache_tokens
    )


def abilities_of(name: str) -> frozenset[Ability]:
    """What a backend can do, without starting it.

    Raises:
        ConfigError: If there is no backend of that name, or it cannot be imported.
    """
    return _backend(name).abilities


def _backend(name: str) -> BackendClass:
    if name not in BACKENDS:
        raise ConfigError(f"{SETTING}: {name!r} is none of {', '.join(sorted(BACKENDS))}")
    found = load_object(BACKENDS[name], kind=SETTING)
    if not isinstance(found, BackendClass):
        raise ConfigError(f"{SETTING}: {BACKENDS[name]} is no class with abilities")
    return found
