"""Models that a method needs beside the run's own, by directory or hub id."""

from __future__ import annotations

from functools import lru_cache

from stir_train.baselines.interface import NotApplicable
from stir_train.config.inputs import ModelConfig
from stir_train.models.load import LoadedModel, load_model


@lru_cache(maxsize=2)
def other_model(name: str, *, device: str = "auto") -> LoadedModel:
    """Load a model; the last two stay."""
    return load_model(ModelConfig(name=name, device=device))


def require_vocabulary(own: LoadedModel, other: LoadedModel) -> None:
    """Check that another model reads the run's tokens.

    Raises:
        NotApplicable: If it does not.
    """
    if other.tokenizer.get_vocab() != own.tokenizer.get_vocab():
        raise NotApplicable(
            f"{other.identity.name} has another vocabulary than {own.identity.name}"
        )
