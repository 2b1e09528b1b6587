"""Say in which settings and sources two records of a stage differ."""

from __future__ import annotations

from typing import Any


def differences(held: Any, wanted: Any, key: str = "") -> list[str]:
    """Dotted keys whose values differ, with both values."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        found = []
        for name in sorted({*held, *wanted}):
            dotted = f"{key}.{name}" if key else str(name)
            found += differences(held.get(name), wanted.get(name), dotted)
        return found
    if held == wanted:
        return []
    if key.startswith("sources."):
        return [f"{key.removeprefix('sources.')} has changed since"]
    return [f"{key.removeprefix('config.')}: {held!r} then, {wanted!r} now"]
