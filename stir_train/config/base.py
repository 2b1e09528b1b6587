"""The base of every configuration model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


def _refuse_repeats(values: tuple[object, ...]) -> tuple[object, ...]:
    repeated = next((value for at, value in enumerate(values) if value in values[:at]), None)
    if repeated is not None:
        raise ValueError(f"names {repeated} twice")
    return values


DISTINCT = AfterValidator(_refuse_repeats)
"""Of a list whose values are tried one after another: one that stands twice would be tried twice."""
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

    @model_validator(mode="before")
    @classmethod
    def _bool_is_no_number(cls, values: Any) -> Any:
        """Pydantic would read true as 1: hand it something that it refuses, in its place."""
        if not isinstance(values, Mapping):
            return values
        return {
            name: value
            if name not in cls.model_fields or _may_hold_bool(cls.model_fields[name].annotation)
            else _refused(value)
            for name, value in values.items()
        }

    @property
    def imported(self) -> dict[str, str]:
        """Import paths of objects of the user's own, by the setting that names them.

        Those that this model itself names; `imported_by` asks the models inside it too.
        """
        return {}


def imported_by(value: object) -> dict[str, str]:
    """Import paths that a configuration and everything in it names, by setting."""
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, FrozenConfig):
        inside = list(vars(value).values())
    else:
        return {}
    own = value.imported if isinstance(value, FrozenConfig) else {}
    return own | {name: path for part in inside for name, path in imported_by(part).items()}


def members_of(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """The models of a field that is one of several by its discriminator; else empty."""
    if not isinstance(field.discriminator, str):
        return {}
    return {
        str(get_args(member.model_fields[field.discriminator].annotation)[0]): member
        for member in get_args(field.annotation)
    }


class _Bool:
    """A bool where none may be."""

    def __init__(self, value: bool) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "true" if self._value else "false"


def _refused(value: Any) -> Any:
    """The value with every bool in it as something that is no value of any setting."""
    if isinstance(value, Mapping):
        return {key: _refused(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_refused(item) for item in value]
    return _Bool(value) if isinstance(value, bool) else value


def _may_hold_bool(annotation: Any) -> bool:
    """Whether a bool somewhere in a value is for the annotation, or a model inside it, to judge."""
    if annotation is bool or annotation is Any:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_may_hold_bool(part) for part in get_args(annotation))
