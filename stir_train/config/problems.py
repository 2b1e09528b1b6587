"""What is wrong with a configuration, in our words, by dotted key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from stir_train.config.base import members_of
from stir_train.errors import ConfigError

SHOWN_CHARACTERS = 80
Problem = tuple[str, str]
"""Dotted key, or nothing where it is the whole; and the complaint."""
_EXPECTED = {
    "missing": "required, but missing",
    "string_type": "expected text",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_parsing_size": "expected a whole number of at most 64 bits",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "greater_than": "expected more than {gt:g}",
    "greater_than_equal": "expected {ge:g} or more",
    "less_than": "expected less than {lt:g}",
    "less_than_equal": "expected {le:g} or less",
    "too_short": "expected {min_length} or more of them",
    "too_long": "expected {max_length} or fewer of them",
    "string_too_short": "expected text that is not empty",
    "string_pattern_mismatch": "expected what the pattern {pattern} describes",
    "literal_error": "expected {expected}",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "dict_type": "expected names with values",
    "model_type": "expected a section of settings",
    "path_type": "expected a path",
    "invalid_key": "expected names of plain text",
}
"""By pydantic's kind of error."""


def list_problems(origin: str, problems: Sequence[Problem]) -> ConfigError:
    """One error of them all."""
    lines = [
        f"  - {key}: {complaint}" if key else f"  - {complaint}" for key, complaint in problems
    ]
    plural = "problem" if len(lines) == 1 else "problems"
    return ConfigError("\n".join([f"{origin}: {len(lines)} {plural}", *lines]))


def describe_problems(kind: type[BaseModel], error: ValidationError) -> list[Problem]:
    """Everything that a model refused; alternatives of one value are one problem."""
    complaints: dict[str, list[str]] = {}
    got: dict[str, Any] = {}
    refused = error.errors(include_url=False)
    inside = {tuple(item["loc"][:-1]) for item in refused if item["loc"]}
    for item in refused:
        location = list(item["loc"])
        if item["type"] == "too_short" and tuple(location) in inside:
            continue  # it is short of what was refused inside it
        place = _place(kind, location)
        names = (
            [*place.names, place.tag_field] if item["type"] == "union_tag_invalid" else place.names
        )
        key = ".".join(names)
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):  # of a model that a validator made
            for inner, complaint in describe_problems(BaseModel, cause):
                complaints.setdefault(f"{key}: {inner}" if inner else key, []).append(complaint)
            continue
        said = complaints.setdefault(key, [])
        complaint = _complaint(place, item)
        if complaint not in said:
            said.append(complaint)
        if location and item["type"] not in ("missing", "extra_forbidden", "union_tag_invalid"):
            got[key] = item["input"]
    return [
        (key, _either(said) + (_shown(got[key], said) if key in got else ""))
        for key, said in complaints.items()
    ]


def _either(said: Sequence[str]) -> str:
    return " or ".join([said[0], *(other.removeprefix("expected ") for other in said[1:])])


def _complaint(place: _Place, item: Mapping[str, Any]) -> str:
    if item["type"] == "extra_forbidden":
        return _unknown(place)
    if item["type"] == "union_tag_invalid":
        tag, tags = str(item["ctx"]["tag"]), list(place.members)
        return f"{tag!r} is none of {', '.join(tags)}{_near(tag, tags)}"
    if item["type"] in _EXPECTED:
        said = _EXPECTED[item["type"]].format(**item.get("ctx", {}))
    else:
        said = str(item["msg"]).removeprefix("Value error, ")
    return f"{said} ({place.tag_field} {place.tag})" if place.tag else said


def _unknown(place: _Place) -> str:
    """What to write instead of a name that the model does not have."""
    name = place.names[-1]
    others = [tag for tag, member in place.members.items() if name in member.model_fields]
    if place.tag and others:
        return (
            f"{place.tag_field} {place.tag} has no such setting; it is of {', '.join(others)} (set "
            f"{'.'.join([*place.names[:-1], place.tag_field])} to one of them, or leave it out)"
        )
    near = _near(name, place.valid)
    known = f"; valid names: {', '.join(place.valid)}" if place.valid else ""
    return f"unknown key{near or known}"


def _near(name: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _shown(value: Any, said: Sequence[str]) -> str:
    """The refused value, its beginning if it is long."""
    if isinstance(value, dict):
        return ""
    as_yaml = {True: "true", False: "false", None: "null"}
    known = value is None or isinstance(value, bool)
    text = as_yaml[value] if known else repr(value)
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}..."
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    hint = "; in quotes it is text" if is_number and _EXPECTED["string_type"] in said else ""
    return f" (got {text}{hint})"


@dataclass(frozen=True)
class _Place:
    """Where an error is.

    Attributes:
        names: Keys and indices, without what pydantic puts between for alternatives.
        valid: Settings of the model that holds it.
        tag_field, tag: What chose that model among ``members``, where it is one of several.
    """

    names: tuple[str, ...]
    valid: tuple[str, ...] = ()
    tag_field: str = ""
    tag: str = ""
    members: Mapping[str, type[BaseModel]] = dataclass_field(default_factory=dict)


def _place(kind: type[BaseModel], location: Sequence[int | str]) -> _Place:
    """Follow pydantic's location through models, lists and alternatives."""
    names: list[str] = []
    place, parts = _Place(()), list(location)
    held: Any = kind
    while parts:
        part = parts.pop(0)
        held = _plain(held)
        if get_origin(held) in (Union, types.UnionType):
            held = None  # `part` says which alternative, not where
            continue
        if part == "[key]" or (held is None and not isinstance(part, int)):
            continue
        names.append(str(part))
        fields = held.model_fields if _is_model(held) else {}
        if not place.tag or place.members.get(place.tag) is not held:
            place = _Place(())
        place = replace(place, valid=tuple(fields))
        members = members_of(fields[str(part)]) if str(part) in fields else {}
        if members:
            tag = str(parts.pop(0)) if parts else ""
            place = _Place((), (), str(fields[str(part)].discriminator), tag, members)
            held = members.get(tag, Any)
        else:
            held = _inside(held, part)
    return replace(place, names=tuple(names))


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _plain(annotation: Any) -> Any:
    """Without metadata, and without None as an alternative."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        others = [other for other in get_args(annotation) if other is not type(None)]
        return _plain(others[0]) if len(others) == 1 else annotation
    return annotation


def _inside(annotation: Any, part: int | str) -> Any:
    if _is_model(annotation):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field else Any
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if arguments else Any
