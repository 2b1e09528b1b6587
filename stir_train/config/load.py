"""Read a configuration from YAML and dotted overrides; report every problem at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

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
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        valid = _valid_names(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], valid, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(valid)}"
        return f"{key}: unknown key; {hint}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{key}: required, but missing"
    got = "" if not location or isinstance(item["input"], dict) else f" (got {item['input']!r})"
    return f"{key or 'settings'}: {message}{got}"


def _valid_names(kind: type[BaseModel], location: Sequence[str]) -> list[str]:
    current: type[BaseModel] = kind
    for part in location:
        field = current.model_fields.get(part)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        current = annotation
    return list(current.model_fields)
