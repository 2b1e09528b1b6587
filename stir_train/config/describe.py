"""Every setting with its default and meaning, from the models themselves."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from stir_train.config.run import RunConfig
from stir_train.errors import ConfigError


def describe_settings(section: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted key, default, meaning) of every setting, or of one section's.

    Raises:
        ConfigError: If there is no such section.
    """
    rows = [row for row in _walk(RunConfig, "") if row[0].startswith(section)]
    if not rows:
        raise ConfigError(f"no settings under {section!r}; sections: {', '.join(_sections())}")
    return rows


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _walk(annotation, f"{prefix}{name}.")
            continue
        default = "(required)" if field.default is PydanticUndefined else repr(field.default)
        yield f"{prefix}{name}", default, field.description or ""


def _sections() -> list[str]:
    return [
        name
        for name, field in RunConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    ]
