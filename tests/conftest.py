"""What every process of the tests is set to; the shared fixtures are in `tests.support.fixtures`."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, and torch with them, but not where tests are only handed out to workers."""
    if config.getoption("dist", "no") == "no":  # in xdist's workers too
        config.pluginmanager.import_plugin("tests.support.fixtures")
