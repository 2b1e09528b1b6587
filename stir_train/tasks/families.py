"""The embedded task families by name."""

from __future__ import annotations

from stir_train.tasks.addition import AdditionFamily
from stir_train.tasks.lookup import LookupFamily
from stir_train.tasks.problem import TaskFamily
from stir_train.tasks.sorting import SortingFamily

FAMILIES: dict[str, TaskFamily] = {
    family.name: family for family in (AdditionFamily(), LookupFamily(), SortingFamily())
}

HELD_OUT_POOL = 3000
"""Reserved problems offered per family; the splits are cut from them."""
