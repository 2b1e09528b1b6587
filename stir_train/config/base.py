"""The base of every configuration model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class FrozenConfig(BaseModel):
    """Immutable, refuses unknown keys, and takes its help from attribute docstrings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

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
