"""Every setting with its default, what it may be, and its meaning, from the models themselves."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from stir_train.config.base import members_of
from stir_train.config.effort import EFFORTS
from stir_train.config.pretrained import EMBEDDED_PREFIX, PRETRAINED
from stir_train.config.run import RunConfig
from stir_train.config.tasks import known_settings
from stir_train.errors import ConfigError

NOT_EMBEDDED = "a model that is not embedded"


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: Dotted, as in a file or an override.
        default: As it is written in YAML; ``(required)`` if there is none.
        allowed: Values or bounds, in words; empty where any value of the type is.
        meaning: Its documentation.
        when: Of a setting that only some choices have, which one, as in ``mode: value``.
        otherwise: What an `effort` other than standard, or a model that is not embedded, sets instead of the default.
    """

    key: str
    default: str
    allowed: str
    meaning: str
    when: str = ""
    otherwise: str = ""

    def __str__(self) -> str:
        """Two lines or more, for a terminal."""
        otherwise = f"   [{self.otherwise}]" if self.otherwise else ""
        when = f"   [{self.when}]" if self.when else ""
        allowed = f"   ({self.allowed})" if self.allowed else ""
        meaning = self.meaning.replace("\n", "\n    ")
        return f"{self.key} = {self.default}{otherwise}{allowed}{when}\n    {meaning}"


@dataclass(frozen=True)
class SetValue:
    """What a setting is in a configuration.

    Attributes:
        key: Dotted.
        value: As it is written in YAML.
        origin: The file or override that sets it; else the effort, the model or the known task that does, or
            ``default``.
    """

    key: str
    value: str
    origin: str

    def __str__(self) -> str:
        """One line, for a terminal."""
        return f"{self.key} = {self.value}   [{self.origin}]"


def describe_values(
    config: RunConfig, origins: Mapping[str, str], section: str = ""
) -> list[SetValue]:
    """Return what every setting is, or a section's, and where it comes from.

    Args:
        config: What was loaded.
        origins: From `stir_train.config.load.origins_of`.
        section: Dotted; empty for all.

    Raises:
        ConfigError: If there is none of that name.
    """
    rows = [
        SetValue(key, _written(value), _origin(key, config, origins))
        for key, value in _values(config, "")
    ]
    found = [row for row in rows if f"{row.key}.".startswith(f"{section}." if section else "")]
    if not found:
        describe_settings(section)  # says what is near to it
        raise ConfigError(f"this configuration sets nothing under {section!r}")
    return found


def _values(model: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _origin(key: str, config: RunConfig, origins: Mapping[str, str]) -> str:
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        above = ".".join(parts[:length])
        if above in origins:
            return origins[above]
    # A mapping is set by what is inside it.
    if inside := next((where for held, where in origins.items() if held.startswith(f"{key}.")), ""):
        return inside
    if key in EFFORTS[config.effort]:
        return f"effort: {config.effort}"
    if key in PRETRAINED and not config.model.name.startswith(EMBEDDED_PREFIX):
        return NOT_EMBEDDED
    if key.startswith("task.") and key.removeprefix("task.") in known_settings(config.task.name):
        return f"task: {config.task.name}"
    return "default"


def describe_settings(section: str = "") -> list[Setting]:
    """Return every setting, or a section's, or one.

    Args:
        section: Dotted; empty for all.

    Raises:
        ConfigError: If there is none of that name; says which are nearest.
    """
    rows = list(_walk(RunConfig, ""))
    found = [row for row in rows if f"{row.key}.".startswith(f"{section}." if section else "")]
    if found:
        return found
    sections = _sections()
    keys = list(dict.fromkeys([*sections, *(row.key for row in rows)]))
    near = difflib.get_close_matches(section, keys, n=3)
    # The last part alone is how one half remembers a name.
    last = section.rpartition(".")[2]
    near += [key for key in keys if key.rpartition(".")[2] == last and key not in near]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(f"no settings under {section!r}; {hint}sections: {', '.join(sections)}")


def _walk(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        key, inner = f"{prefix}{name}", _model_of(field.annotation)
        members = members_of(field)
        if members:
            yield from _walk_members(members, field, key)
        elif inner is not None:
            yield from _walk(inner, f"{key}.")
        else:
            yield Setting(
                key,
                _default(field),
                _allowed(field),
                field.description or "",
                otherwise=_otherwise(key),
            )
            held = _model_in_mapping(field.annotation)
            if held is not None:
                yield from _walk(held, f"{key}.NAME.")


def _walk_members(
    members: dict[str, type[BaseModel]], field: FieldInfo, key: str
) -> Iterator[Setting]:
    """What chooses, then every setting once, with the choices that have it."""
    tag = str(field.discriminator)
    chosen = getattr(field.get_default(call_default_factory=True), tag)
    meanings = [f"`{name}`: {m.model_fields[tag].description}" for name, m in members.items()]
    yield Setting(f"{key}.{tag}", str(chosen), " | ".join(members), "\n".join(meanings))
    rows: dict[Setting, list[str]] = {}
    for name, member in members.items():
        for row in _walk(member, f"{key}."):
            if row.key != f"{key}.{tag}":
                rows.setdefault(row, []).append(name)
    for row, names in rows.items():
        of = "" if len(names) == len(members) else f"{tag}: {', '.join(names)}"
        yield Setting(row.key, row.default, row.allowed, row.meaning, of)


def _otherwise(key: str) -> str:
    """What each effort sets, and what is set for models that are not embedded, if anything is."""
    found = [
        f"effort {e}: {_written(scaled[key])}" for e, scaled in EFFORTS.items() if key in scaled
    ]
    if key in PRETRAINED:
        found.append(f"{NOT_EMBEDDED}: {_written(PRETRAINED[key])}")
    return "; ".join(found)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "(required)"
    return _written(value)


def _written(value: Any) -> str:
    return json.dumps(to_jsonable_python(value), ensure_ascii=False)


def _allowed(field: FieldInfo) -> str:
    return "; ".join(dict.fromkeys([*_choices(field.annotation), *_bounds(field.metadata)]))


def _choices(annotation: Any) -> Iterator[str]:
    """The values of a `Literal`, and the bounds of what a list or an option holds."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield " | ".join(map(str, get_args(annotation)))
    elif hasattr(annotation, "__metadata__"):
        yield from _choices(annotation.__origin__)
        yield from _bounds(annotation.__metadata__)
    elif origin in (tuple, Union, UnionType):
        for inner in get_args(annotation):
            words = list(_choices(inner))
            yield from (f"each {word}" for word in words) if origin is tuple else words


def _bounds(metadata: Any) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _bounds(item.metadata)
            continue
        for sign, bound in ((">", Gt), (">=", Ge), ("<", Lt), ("<=", Le)):
            name = bound.__name__.lower()
            value = getattr(item, name, None) if isinstance(item, bound | Interval) else None
            if value is not None:
                yield f"{sign} {value:g}"
        if isinstance(item, MinLen | Len) and item.min_length:
            yield "not empty"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def _model_in_mapping(annotation: Any) -> type[BaseModel] | None:
    """The model that a mapping holds under names of the user's own."""
    held = get_args(annotation)[1:] if get_origin(annotation) is dict else ()
    return next((inner for part in held if (inner := _model_of(part))), None)


def _sections() -> list[str]:
    return [
        name
        for name, field in RunConfig.model_fields.items()
        if _model_of(field.annotation) or members_of(field)
    ]
