"""Which backend a name stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stir_train.errors import ConfigError
from stir_train.generation.backend import Ability, GenerationBackend
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel


@dataclass(frozen=True)
class Limits:
    """Of the rows that a backend decodes side by side.

    Attributes:
        max_rows: At most so many.
        max_cache_tokens: Bound of rows times their longest possible length; None sets none.
    """

    max_rows: int
    max_cache_tokens: int | None = None


def open_backend(name: str, loaded: LoadedModel, limits: Limits) -> GenerationBackend:
    """Start a backend over a model.

    Raises:
        ConfigError: If there is no backend of that name.
        ModelError: If the backend cannot run the model.
    """
    return _backend(name).start(loaded, limits)


def abilities_of(name: str) -> frozenset[Ability]:
    """What a backend can do, without starting it.

    Raises:
        ConfigError: If there is no backend of that name.
    """
    return _backend(name).abilities


def _start_transformers(loaded: LoadedModel, limits: Limits) -> GenerationBackend:
    return DecodeEngine(loaded, max_rows=limits.max_rows, max_cache_tokens=limits.max_cache_tokens)


@dataclass(frozen=True)
class _Backend:
    abilities: frozenset[Ability]
    start: Callable[[LoadedModel, Limits], GenerationBackend]


BACKENDS = {DecodeEngine.name: _Backend(DecodeEngine.abilities, _start_transformers)}
"""By their value of ``generation.backend``."""


def _backend(name: str) -> _Backend:
    if name not in BACKENDS:
        raise ConfigError(f"generation.backend: {name!r} is none of {', '.join(sorted(BACKENDS))}")
    return BACKENDS[name]
