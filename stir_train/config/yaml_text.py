"""Read YAML as it is written, within bounds: a hostile file is refused, not obeyed.

Whole numbers, decimals, true, false and null are what they look like; everything else is text, so
`16:00:00`, `2026-01-31`, `007` and `on` stay as typed. Tags are not read, a key is given once.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stir_train.errors import ConfigError

MAX_BYTES = 1 << 18
MAX_DEPTH = 40
MAX_VALUES = 20_000
"""Values of a file, counting what an alias stands for every time."""
MAX_DIGITS = 18
"""Of a whole number, which so fits 64 bits; Python itself refuses to read thousands of digits."""
MERGE_KEY = "<<"
_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ("~", "n", "N", "")),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), tuple("tTfF")),
    ("int", re.compile(r"(?:0|-?[1-9][0-9]*)\Z"), tuple("-0123456789")),
    (
        "float",
        re.compile(
            r"(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        tuple("-+.0123456789"),
    ),
)
"""Kinds of plain scalars: name, pattern, and the characters that they start with."""


@dataclass
class YamlValues:
    """What a text holds.

    Attributes:
        value: Mappings, lists and scalars; nothing in it is shared.
        problems: Dotted key and complaint of what was left out of it.
    """

    value: Any = None
    problems: list[tuple[str, str]] = field(default_factory=list)


def read_yaml(path: Path) -> YamlValues:
    """Read a regular file.

    Raises:
        ConfigError: If it is none, is too large, or is not YAML.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            held = path / "config.yaml"
            hint = f"; a run's is {held}" if held.is_file() else ""
            raise ConfigError(f"{path}: a configuration is a regular file, and this is none{hint}")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read as YAML: it is not UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{path}: more than {MAX_BYTES // 1024} KiB, which no configuration needs"
        )
    return parse_yaml(text, origin=str(path))


def parse_yaml(text: str, *, origin: str) -> YamlValues:
    """Read a text; ``origin`` names it in errors.

    Raises:
        ConfigError: If it is not YAML, or beyond the bounds.
    """
    try:
        loader = _BoundedLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{origin}: cannot be read as YAML: {where}{error.problem}") from error
    except yaml.YAMLError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{origin}: cannot be read as YAML: {reason}") from error
    except (ValueError, OverflowError) as error:  # PyYAML does not look before it converts
        raise ConfigError(
            f"{origin}: cannot be read as YAML: an escape or a directive holds a number out of range"
        ) from error
    found = YamlValues()
    if node is not None:
        found.value = _value(node, "", found.problems)
    return found


class _BoundedLoader(yaml.SafeLoader):
    """Stops at too deep or too many values, aliases counted as what they stand for."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute, never changed
        first: [(_TAG + name, pattern) for name, pattern, firsts in _SCALARS if first in firsts]
        for first in {first for _, _, firsts in _SCALARS for first in firsts}
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._deepest = self._count = 0
        self._extents: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next node; of each finished one its values and levels are known."""
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", f"{_TAG}str"):
            shown = tag.replace(_TAG, "!!")
            raise _refusal(event, f"tags such as {shown} are not read here")
        is_alias = self.check_event(yaml.AliasEvent)
        count, deepest = self._count, self._deepest
        self._depth += 1
        self._deepest = self._depth
        self._require_bounds(event)
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._extents:
                raise _refusal(event, "an alias stands inside of what it stands for")
            values, levels = self._extents[id(node)]
            self._count += values
            self._deepest = self._depth + levels
        else:
            self._count += 1
            self._extents[id(node)] = (self._count - count, self._deepest - self._depth)
        self._require_bounds(event)
        self._deepest = max(deepest, self._deepest)
        self._depth -= 1
        return node

    def _require_bounds(self, event: yaml.Event) -> None:
        if self._deepest > MAX_DEPTH:
            raise _refusal(event, f"more than {MAX_DEPTH} levels, which no configuration needs")
        if self._count > MAX_VALUES:
            raise _refusal(event, f"more than {MAX_VALUES} values, which no configuration needs")


def _refusal(event: yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    mark = event.start_mark
    assert isinstance(mark, yaml.Mark | None)
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _value(node: yaml.Node, key: str, problems: list[tuple[str, str]]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, key, problems)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, f"{key}.{i}", problems) for i, item in enumerate(node.value)]
    return _scalar(node, key, problems)


def _mapping(node: yaml.MappingNode, key: str, problems: list[tuple[str, str]]) -> dict[str, Any]:
    """A mapping's values over those that its merge key takes in."""
    values: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for name_node, value_node in node.value:
        line = name_node.start_mark.line + 1
        if not isinstance(name_node, yaml.ScalarNode) or not _is_text(name_node.value):
            problems.append((key, f"line {line}: expected a key of plain text"))
            continue
        name = name_node.value
        dotted = f"{key}.{name}" if key else name
        if name in lines:
            problems.append((dotted, f"given twice, on lines {lines[name]} and {line}"))
            continue
        lines[name] = line
        if name == MERGE_KEY:
            merged = _merged(value_node, dotted, problems)
        else:
            values[name] = _value(value_node, dotted, problems)
    return {**merged, **values}


def _merged(node: yaml.Node, key: str, problems: list[tuple[str, str]]) -> dict[str, Any]:
    """The mapping, or the mappings of a list, the first of which wins."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    values: dict[str, Any] = {}
    for part in parts:
        if not isinstance(part, yaml.MappingNode):
            problems.append((key, "expected a section of settings, or a list of them"))
            continue
        values = {**_mapping(part, key.rpartition(".")[0], problems), **values}
    return values


def _scalar(node: yaml.Node, key: str, problems: list[tuple[str, str]]) -> Any:
    text, kind = str(node.value), node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "float":
        return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
    if kind == "int":
        if len(text) <= MAX_DIGITS:
            return int(text)
        problems.append((key, f"expected a number of at most {MAX_DIGITS} digits, got {len(text)}"))
    elif _is_text(text):
        return text
    else:
        problems.append((key, "holds a character that no text has (NUL or half of a pair)"))
    return None


def _is_text(text: str) -> bool:
    """Whether it can be a file name, and be written as UTF-8."""
    return not any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in text)
