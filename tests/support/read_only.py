"""A directory in which this process can open nothing for writing, whoever it runs as."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
}
_protected: list[str] = []


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Inside, changes under a directory fail as they do on a disk that is mounted read-only.

    Permission bits would not do: they do not hold for root.
    """
    _watch()
    _protected.append(f"{directory.resolve()}/")
    try:
        yield
    finally:
        _protected.pop()


@cache
def _watch() -> None:
    """Python's audit hooks cannot be taken away; without a protected directory this one does nothing."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if not _protected:
        return
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        changed = [path] if writes else []
    else:
        changed = list(arguments[:2]) if event in _CHANGES else []
    for name in changed:
        if isinstance(name, str | os.PathLike) and _is_protected(os.fspath(name)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(name))


def _is_protected(name: str | bytes) -> bool:
    path = os.path.abspath(os.fsdecode(name))
    return any(path.startswith(protected) for protected in _protected)
