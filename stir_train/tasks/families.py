"""The embedded task families by name."""

from __future__ import annotations

from stir_train.errors import ConfigError
from stir_train.tasks.addition import AdditionFamily, blind_addition
from stir_train.tasks.problem import TaskFamily
from stir_train.tasks.sorting import SortingFamily, wasteful_sorting

FAMILIES: dict[str, TaskFamily] = {
    family.name: family
    for family in (AdditionFamily(), blind_addition(), SortingFamily(), wasteful_sorting())
}

HELD_OUT_POOL = 3000
"""Reserved problems offered per family; the splits are cut from them."""


def embedded_family(name: str) -> TaskFamily:
    """Look a family up.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in FAMILIES:
        raise ConfigError(f"{name!r} is no embedded family; there are {', '.join(FAMILIES)}")
    return FAMILIES[name]
