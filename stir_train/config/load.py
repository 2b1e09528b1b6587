"""Read a configuration from YAML and dotted overrides; report every problem at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from stir_train.config.problems import Problem, describe_problems, list_problems
from stir_train.config.yaml_text import MAX_DEPTH, YamlValues, parse_yaml, read_yaml
from stir_train.errors import ConfigError

EXTENDS = "extends"
MAX_FILES, MAX_GENERATIONS = 100, 20
"""Files that a configuration may extend, in all and one above the other."""
YAML_INDICATORS = "'\"|>!&*"
"""With which a text begins that is not plain."""
Config = TypeVar("Config", bound=BaseModel)


def load_config(kind: type[Config], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` over the files it extends, apply ``key.sub=value`` overrides, validate.

    ``extends: [a.yaml, b.yaml]`` names files beside this one; later files win, this one last.

    Raises:
        ConfigError: Listing every unknown key (with the nearest valid name) and every bad value.
    """
    files = _Files()
    values = files.merged(path, ())
    return _validated(kind, values, overrides, origin=str(path), problems=files.problems)


def origins_of(path: Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Where the settings of a configuration that loads are set: by dotted key, a file or an override."""
    origins = _Files().origins(path)
    for override in overrides:
        key = override.partition("=")[0].strip()
        inside = [held for held in origins if held.startswith(f"{key}.")]
        origins = {held: where for held, where in origins.items() if held not in inside}
        origins[key] = f"override {override}"
    return origins


def parse_config(
    kind: type[Config], values: dict[str, Any], overrides: Sequence[str], *, origin: str
) -> Config:
    """Validate ``values`` with ``key.sub=value`` overrides applied; ``origin`` names them in errors.

    Raises:
        ConfigError: Listing every unknown key (with the nearest valid name) and every bad value.
    """
    return _validated(kind, values, overrides, origin=origin, problems=[])


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML, every default filled in."""
    return dump_yaml(config.model_dump(mode="json"))


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML, in their order."""
    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


def _validated(
    kind: type[Config],
    values: dict[str, Any],
    overrides: Sequence[str],
    *,
    origin: str,
    problems: list[Problem],
) -> Config:
    for override in overrides:
        problems += _apply_override(values, override, kind)
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        told = {key for key, _ in problems}
        problems += [found for found in describe_problems(kind, error) if found[0] not in told]
        raise list_problems(origin, problems) from error
    if problems:
        raise list_problems(origin, problems)
    return config


class _Files:
    """A configuration and what it extends, each file read once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._merged: dict[Path, dict[str, Any]] = {}
        self._num_read = 0

    def merged(self, path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
        """A file's values over those of the files it extends."""
        place = _place(path)
        if place in above:
            raise ConfigError(f"{path}: extends itself, by way of {above[-1]}")
        if place in self._merged:
            return self._merged[place]
        self._num_read += 1
        if self._num_read > MAX_FILES or len(above) >= MAX_GENERATIONS:
            raise ConfigError(
                f"{path}: a configuration extends at most {MAX_FILES} files, {MAX_GENERATIONS} of "
                "them one above the other"
            )
        values, parents = self._read(path, is_part=bool(above))
        merged: dict[str, Any] = {}
        for name in parents:
            merged = _merge(merged, self.merged(path.parent / name, (*above, place)))
        self._merged[place] = _merge(merged, values)
        return self._merged[place]

    def origins(self, path: Path) -> dict[str, str]:
        """The file that has the last word about each setting that one of them names."""
        values, parents = self._read(path, is_part=False)
        found: dict[str, str] = {}
        for name in parents:
            found |= self.origins(path.parent / name)
        return found | dict.fromkeys(_leaves(values), str(path))

    def _read(self, path: Path, *, is_part: bool) -> tuple[dict[str, Any], list[str]]:
        """A file's own values, and the names of the files it extends."""
        found = read_yaml(path)
        where = f" ({path})" if is_part else ""
        self.problems += [(key, f"{complaint}{where}") for key, complaint in found.problems]
        values = {} if found.value is None else found.value
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path}: expected a mapping of settings, got {type(values).__name__}"
            )
        parents = values.pop(EXTENDS, [])
        if not isinstance(parents, list) or not all(isinstance(n, str) and n for n in parents):
            raise list_problems(
                str(path), [*found.problems, (EXTENDS, "must be a list of file names")]
            )
        return values, parents


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of everything that is no section."""
    found: list[str] = []
    for key, value in values.items():
        inside = _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else []
        found += inside or [f"{prefix}{key}"]
    return found


def _place(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle are a RuntimeError
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Sections merged, values replaced; nothing in it is shared with what it is made from."""
    merged = {key: _copy(value) for key, value in base.items()}
    for key, value in over.items():
        held = merged.get(key)
        both = isinstance(held, dict) and isinstance(value, dict)
        merged[key] = _merge(held, value) if both and isinstance(held, dict) else _copy(value)
    return merged


def _copy(value: Any) -> Any:
    """Sections copied, since an override writes into them."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value


def _apply_override(values: dict[str, Any], override: str, kind: type[BaseModel]) -> list[Problem]:
    """Set one key; what is wrong with it."""
    key, separator, text = override.partition("=")
    key = key.strip()
    parts = key.split(".")
    shown = repr(override if len(override) <= MAX_DEPTH else f"{override[:MAX_DEPTH]}...")
    if not separator or not all(parts) or len(parts) > MAX_DEPTH:
        return [("", f"override {shown}: expected key=value, as in rollout.num_samples=4")]
    words = text.strip()
    try:
        found = parse_yaml(text, origin=f"override {shown}")
    except ConfigError as error:
        if not _takes_text(kind, parts):
            return [("", str(error))]
        found = YamlValues(words)
    if _takes_text(kind, parts) and _is_mistaken(found.value, words):
        found = YamlValues(words)
    node = values
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            return [("", f"override {shown}: {part!r} is a value, not a section")]
        node = child
    is_plain = isinstance(found.value, str) and words[0] not in YAML_INDICATORS
    # A command line has no comments: what follows a `#` belongs to the value.
    node[parts[-1]] = words if is_plain else found.value
    return [(f"{key}{inner}", complaint) for inner, complaint in found.problems]


def _takes_text(kind: type[BaseModel], parts: Sequence[str]) -> bool:
    """Whether a setting is a text, or a text or nothing."""
    annotation: Any = kind
    for part in parts:
        is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        if not is_section or part not in annotation.model_fields:
            return False
        annotation = annotation.model_fields[part].annotation
    is_union = get_origin(annotation) in (Union, UnionType)
    options = set(get_args(annotation)) if is_union else {annotation}
    return str in options and options <= {str, NoneType}


def _is_mistaken(value: object, words: str) -> bool:
    """Whether YAML took a text for something else: `Answer: (.*)` for a mapping, `#### (.*)` for a comment.

    Names with values in braces are no text; a template such as `{question}` is.
    """
    if isinstance(value, dict) and words.startswith("{"):
        return all(item is None for item in value.values())
    return isinstance(value, dict | list) or (value is None and words.startswith("#"))
