"""Open the test split: only for items that nothing was made from, and counted by frozen choice."""

from __future__ import annotations

from collections.abc import Mapping

from stir_train.artifacts.openings import record_opening
from stir_train.data.prompts import require_unseen
from stir_train.monitoring.console import caution
from stir_train.runtime.context import RunContext


def open_test_split(context: RunContext, choice: str, used: Mapping[str, set[str]]) -> int:
    """Count the opening, and warn from the second choice on; on rank 0 alone.

    Args:
        context: The run.
        choice: Hash of what was frozen before.
        used: Ids of problems by what they went into.

    Returns:
        For how many choices the split was opened so far.

    Raises:
        DataError: If test items went into something.
        ArtifactError: If the record of openings is damaged.
    """
    require_unseen(context.splits["test"], used)
    openings = record_opening(context.run_dir.path, choice)
    if openings > 1:
        context.console.print(
            caution(
                f"the test split is opened for choice number {openings} of this run directory; its "
                "intervals are honest for the first alone"
            )
        )
    return openings
