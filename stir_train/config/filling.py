"""Fill settings in before a configuration is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def filled_in(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and of the settings (by dotted key) those that are not among them.

    What cannot be filled, because a section is no mapping, is left to be refused.
    """
    filled = dict(values)
    for key, value in settings.items():
        section, _, setting = key.partition(".")
        held = filled.get(section, {})
        if isinstance(held, Mapping) and setting not in held:
            filled[section] = {**held, setting: value}
    return filled
