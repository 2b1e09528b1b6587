"""Variables of the environment: those that a library reads while it starts, and secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def secret(name: str) -> str | None:
    """The value of a variable that a user keeps a secret in; None where it is unset or empty."""
    return os.environ.get(name) or None


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables inside the context, and put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
