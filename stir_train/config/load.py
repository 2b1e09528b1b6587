"""Read a configuration from YAML and dotted overrides; report every problem at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from stir_train.config.base import members_of
from stir_train.errors import ConfigError

EXTENDS = "extends"
Config = TypeVar("Config", bound=BaseModel)


def load_config(kind: type[Config], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` over the files it extends, apply ``key.sub=value`` overrides, validate.

    ``extends: [a.yaml, b.yaml]`` names files beside this one; later files win, this one last.

    Raises:
        ConfigError: Listing every unknown key (with the nearest valid name) and every bad value.
    """
    return parse_config(kind, _read_extended(path, ()), overrides, origin=str(path))


def parse_config(
    kind: type[Config], values: dict[str, Any], overrides: Sequence[str], *, origin: str
) -> Config:
    """Validate ``values`` with ``key.sub=value`` overrides applied; ``origin`` names them in errors.

    Raises:
        ConfigError: Listing every unknown key (with the nearest valid name) and every bad value.
    """
    for override in overrides:
        _apply_override(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_describe(kind, dict(item)) for item in error.errors()]
        listed = "\n".join(f"  - {problem}" for problem in problems)
        plural = "problem" if len(problems) == 1 else "problems"
        raise ConfigError(f"{origin}: {len(problems)} {plural}\n{listed}") from error


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML, every default filled in."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _read_extended(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A file's values merged over those of the files it extends."""
    if path in above:
        raise ConfigError(f"{path}: extends itself, by way of {above[-1]}")
    values = _read_yaml(path)
    parents = values.pop(EXTENDS, [])
    if not isinstance(parents, list) or not all(isinstance(name, str) for name in parents):
        raise ConfigError(f"{path}: {EXTENDS} must be a list of file names")
    merged: dict[str, Any] = {}
    for name in parents:
        merged = _merge(merged, _read_extended((path.parent / name).resolve(), (*above, path)))
    return _merge(merged, values)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        held = merged.get(key)
        both = isinstance(held, dict) and isinstance(value, dict)
        merged[key] = _merge(held, value) if both and isinstance(held, dict) else value
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override {override!r}: expected key=value, as in rollout.num_samples=4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error
    node = values
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {part!r} is a value, not a section")
        node = child
    node[parts[-1]] = value


def _describe(kind: type[BaseModel], item: dict[str, Any]) -> str:
    place = _locate(kind, item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{place.key}: {_unknown(place)}"
    if item["type"] == "missing":
        return f"{place.key}{place.of_tag}: required, but missing"
    if item["type"] == "union_tag_invalid":
        tag, tags = item["ctx"]["tag"], list(place.members)
        return (
            f"{place.key}.{place.tag_field}: {tag!r} is none of {', '.join(tags)}{_near(tag, tags)}"
        )
    message = str(item["msg"]).removeprefix("Value error, ")
    got = "" if not place.key or isinstance(item["input"], dict) else f" (got {item['input']!r})"
    return f"{place.key or 'settings'}{place.of_tag}: {message}{got}"


@dataclass(frozen=True)
class _Place:
    """Where an error is.

    Attributes:
        key: Dotted, as in a file or an override; the tags that pydantic puts between are left out.
        names: Settings of the model that holds it.
        tag_field, tag: What chose that model among ``members``, where it is one of several.
    """

    key: str
    names: tuple[str, ...] = ()
    members: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    tag_field: str = ""
    tag: str = ""

    @property
    def of_tag(self) -> str:
        return f" ({self.tag_field} {self.tag})" if self.tag else ""


def _locate(kind: type[BaseModel], location: Sequence[int | str]) -> _Place:
    """Follow pydantic's location through models and unions of models."""
    keys: list[str] = []
    place, current = _Place("", tuple(kind.model_fields)), kind
    parts = [str(part) for part in location]
    while parts:
        keys.append(parts.pop(0))
        found = current.model_fields.get(keys[-1])
        if found is None:
            break
        members = members_of(found)
        if members:
            tag_field = str(found.discriminator)
            tag = parts.pop(0) if parts else ""
            place = _Place("", place.names, members, tag_field, tag)
            if not tag:
                break
            current = members[tag]
        elif isinstance(found.annotation, type) and issubclass(found.annotation, BaseModel):
            current = found.annotation
            place = _Place("")
        else:
            break
        place = replace(place, names=tuple(current.model_fields))
    return replace(place, key=".".join([*keys, *parts]))


def _unknown(place: _Place) -> str:
    """What to write instead of a name that the model does not have."""
    name = place.key.rpartition(".")[2]
    others = [tag for tag, member in place.members.items() if name in member.model_fields]
    if others:
        return (
            f"{place.tag_field} {place.tag} has no such setting; it is of {', '.join(others)} "
            f"(set {place.key.removesuffix(name)}{place.tag_field} to one of them, or leave it out)"
        )
    near = _near(name, place.names)
    return f"unknown key{near or '; valid names: ' + ', '.join(place.names)}"


def _near(name: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
