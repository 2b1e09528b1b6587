"""The base of every configuration model."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonEmptyText = Annotated[str, Field(min_length=1)]


class FrozenConfig(BaseModel):
    """Immutable, refuses unknown keys, and takes its help from attribute docstrings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _bool_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would read true as 1."""
        field = cls.model_fields[str(info.field_name)]
        if _holds_bool(value) and not _may_hold_bool(field.annotation):
            raise ValueError("true and false are no values of this setting")
        return value


def _holds_bool(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_bool(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_bool(item) for item in value)
    return isinstance(value, bool)


def _may_hold_bool(annotation: Any) -> bool:
    """Whether a bool somewhere in a value is for the annotation, or a model inside it, to judge."""
    if annotation is bool or annotation is Any:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_may_hold_bool(part) for part in get_args(annotation))
