"""Which problems several runs have in common: figures of the same problems are no repetition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from stir_train.artifacts.run_dir import RunDir
from stir_train.runtime.context import PROBLEMS_FILE


def describe_shared(runs: Sequence[Path]) -> str:
    """Say if some test problems of a run are another's too, or were learned from in another.

    Nothing is said of runs with the very same test problems, as one has them to compare methods.

    Args:
        runs: Run directories with a finished evaluation.

    Returns:
        Sentences, or an empty string.

    Raises:
        ArtifactError: If a list of problems is damaged.
    """
    tested = [_used(run, test=True) for run in runs]
    learned_from = [_used(run, test=False) for run in runs]
    said = []
    in_all, different = sum(map(len, tested)), len(set().union(*tested))
    if any(one & other and one != other for one, other in combinations(tested, 2)):
        said.append(
            f"These {len(runs)} runs answered {in_all:,} test problems, {different:,} of them different ones: "
            "where they agree, it is in part because the problems are the same."
        )
    num_learned = sum(
        len(problems & set().union(*learned_from[:i], *learned_from[i + 1 :]))
        for i, problems in enumerate(tested)
    )
    if num_learned:
        said.append(
            f"Test problems that another of these runs harvested or tuned on: {num_learned:,}."
        )
    return " ".join(said)


def _used(run: Path, *, test: bool) -> set[str]:
    """Ids of the problems that a run's stages read, of the test split or of the others."""
    found: set[str] = set()
    for path in sorted(run.glob(f"*/{PROBLEMS_FILE}")):
        stage = RunDir(run).stage(path.parent.name)
        held = json.loads(stage.verified(PROBLEMS_FILE).read_text(encoding="utf-8"))
        found.update(*(ids for split, ids in held.items() if (split == "test") == test))
    return found
