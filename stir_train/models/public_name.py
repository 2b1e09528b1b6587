"""What a model is called where its files are of no use to a reader: a hub id if known, never a path."""

from __future__ import annotations

import json
import re
from pathlib import Path

_IN_CACHE = re.compile(r"models--(?P<id>[^/]+)/snapshots/")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def public_name(name: str) -> str:
    """The hub id of a model, or the name of its folder.

    Args:
        name: As in `model.name`: a hub id, an embedded model, or a path.
    """
    path = Path(name).expanduser()
    if not path.exists():
        return name
    path = path.resolve()
    cached = _IN_CACHE.search(f"{path}/")
    if cached:
        return cached["id"].replace("--", "/")
    said = _said_by_config(path if path.is_dir() else path.parent)
    return said if _HUB_ID.fullmatch(said) and not Path(said).exists() else path.name


def _said_by_config(directory: Path) -> str:
    """The id that a config.json was saved with; empty if it has none."""
    try:
        values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(values.get("_name_or_path") or "") if isinstance(values, dict) else ""
