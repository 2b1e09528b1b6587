"""Which settings are worth decoding, by what is estimated of them beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.evals.halving import Candidate
from stir_train.types.shortlist import GainEstimate

MIN_EFFECTIVE = 5.0
"""An estimate from fewer effective replays leaves nothing out."""


def worth_trying(
    candidates: Sequence[Candidate],
    estimates: Sequence[GainEstimate | None],
    num_best: int,
) -> list[bool]:
    """Whether each is among the best of its group, or too little is known of it to say.

    Args:
        candidates: What might be tried.
        estimates: What is known of each; None of nothing.
        num_best: Those of a group that stay, of those of which enough is known; of equals the first.
    """
    tried = [estimate is None or not is_known(estimate) for estimate in estimates]
    groups: dict[str, list[tuple[float, int]]] = {}
    for i, (candidate, estimate) in enumerate(zip(candidates, estimates, strict=True)):
        if estimate is not None and is_known(estimate):
            groups.setdefault(candidate.group, []).append((-estimate.gain, i))
    for members in groups.values():
        for _, i in sorted(members)[:num_best]:
            tried[i] = True
    return tried


def is_known(estimate: GainEstimate) -> bool:
    """Whether an estimate rests on enough replays to leave something out for it."""
    return estimate.num_effective >= MIN_EFFECTIVE
