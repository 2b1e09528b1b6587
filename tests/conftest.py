"""What every process of the tests is set to; the shared fixtures are in `tests.support.fixtures`."""

from __future__ import annotations

import importlib
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tests.support.type_checks import check_types_of

PACKAGES = (
    "types models generation stores harvest basis value directions steering distill baselines"
)
"""Those of the package whose signatures name shapes of tensors."""

SLOWEST = ("test_ranks.py", "test_sharding.py", "test_whole_runs.py", "test_real_model.py")
"""Files whose slow tests take longest. They begin, so that no worker is left with one at the end."""

# Before any other conftest.py imports of them.
check_types_of(*(f"stir_train.{package}" for package in PACKAGES.split()))


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, and torch with them, but not where tests are only handed out to workers."""
    if config.getoption("dist", "no") == "no":  # in xdist's workers too
        config.pluginmanager.import_plugin("tests.support.fixtures")
        # Tests kill processes, not machines: what is written need not be on the disk.
        atomic = importlib.import_module("stir_train.artifacts.atomic")
        atomic._sync = lambda _path: None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first; within a file nothing changes places."""
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
