"""The embedded task families by name."""

from __future__ import annotations

from stir_train.tasks.addition import AdditionFamily
from stir_train.tasks.problem import TaskFamily

FAMILIES: dict[str, TaskFamily] = {"addition": AdditionFamily()}

HELD_OUT_POOL = 3000
"""Reserved problems offered per family; the splits are cut from them."""
