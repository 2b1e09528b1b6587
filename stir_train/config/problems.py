"""What is wrong with a configuration, in our words, by dotted key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

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
    for item in error.errors(include_url=False):
        location = list(item["loc"])
        key = ".".join(_names(kind, location))
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):  # of a model that a validator made
            for inner, complaint in describe_problems(BaseModel, cause):
                complaints.setdefault(f"{key}: {inner}" if inner else key, []).append(complaint)
            continue
        said = complaints.setdefault(key, [])
        complaint = _complaint(kind, location, item)
        if complaint not in said:
            said.append(complaint)
        if location and item["type"] not in ("missing", "extra_forbidden"):
            got[key] = item["input"]
    return [
        (key, _either(said) + (_shown(got[key], said) if key in got else ""))
        for key, said in complaints.items()
    ]


def _either(said: Sequence[str]) -> str:
    return " or ".join([said[0], *(other.removeprefix("expected ") for other in said[1:])])


def _complaint(
    kind: type[BaseModel], location: Sequence[int | str], item: Mapping[str, Any]
) -> str:
    if item["type"] == "extra_forbidden":
        valid = _valid_names(kind, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), valid, n=1)
        known = f"; valid names: {', '.join(valid)}" if valid else ""
        return f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key{known}"
    if item["type"] in _EXPECTED:
        return _EXPECTED[item["type"]].format(**item.get("ctx", {}))
    return str(item["msg"]).removeprefix("Value error, ")


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


def _names(kind: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys and indices of a location, without the names that pydantic gives alternatives."""
    names: list[str] = []
    annotation: Any = kind
    for part in location:
        annotation = _plain(annotation)
        origin = get_origin(annotation)
        if origin in (Union, types.UnionType):
            annotation = None  # `part` says which alternative, not where
        elif part == "[key]" or (annotation is None and not isinstance(part, int)):
            continue
        else:
            names.append(str(part))
            annotation = _inside(annotation, part)
    return names


def _plain(annotation: Any) -> Any:
    """Without metadata, and without None as an alternative."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        others = [other for other in get_args(annotation) if other is not type(None)]
        return _plain(others[0]) if len(others) == 1 else annotation
    return annotation


def _inside(annotation: Any, part: int | str) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field else Any
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if arguments else Any


def _valid_names(kind: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    annotation: Any = kind
    for part in location:
        annotation = _plain(_inside(annotation, part))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    return []
