"""Load baselines by shipped name or import path."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stir_train.baselines.interface import Baseline
from stir_train.config.baselines import BASELINES
from stir_train.config.import_path import load_object
from stir_train.errors import ConfigError

SETTING = "baselines.methods"
RESERVED = re.compile(r"greedy|(stir|lora|control|variant)(-.*)?")
"""Names of our own methods, which share a table with the baselines."""


def load_baseline(path: str) -> Baseline:
    """The method of a shipped name or an import path; a class is called without arguments.

    Raises:
        ConfigError: If it cannot be imported, is no `Baseline`, or has a name that cannot be a row of the
            results and a directory.
    """
    found = load_object(BASELINES.get(path, path), kind=SETTING)
    method = found() if isinstance(found, type) else found
    if not isinstance(method, Baseline):
        raise ConfigError(
            f"{SETTING}: {path!r} is no baseline; it needs `name`, `needs`, `prepare`, `settings` and "
            "`answer`, as in stir_train/baselines/interface.py"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", method.name) or RESERVED.fullmatch(method.name):
        raise ConfigError(
            f"{SETTING}: {path!r} calls itself {method.name!r}; expected lower-case letters, digits and "
            "dashes, and none of our own methods' names (greedy, stir-..., lora-..., control-..., variant-...)"
        )
    return method


def load_baselines(paths: Sequence[str]) -> dict[str, Baseline]:
    """The methods of some names, by what each was named.

    Raises:
        ConfigError: As `load_baseline`; or if two call themselves the same.
    """
    methods = {path: load_baseline(path) for path in paths}
    names = [method.name for method in methods.values()]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{SETTING}: two methods call themselves {name!r}; rename one")
    return methods
