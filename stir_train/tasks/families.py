"""The embedded task families by name."""

from __future__ import annotations

from stir_train.tasks.addition import AdditionFamily
from stir_train.tasks.problem import TaskFamily
from stir_train.tasks.sorting import SortingFamily, wasteful_sorting

FAMILIES: dict[str, TaskFamily] = {
    family.name: family for family in (AdditionFamily(), SortingFamily(), wasteful_sorting())
}

HELD_OUT_POOL = 3000
"""Reserved problems offered per family; the splits are cut from them."""
