"""How much a run spends: one word that sets the sizes of harvest, validation, tuning and evaluation.

What a file or an override sets wins over it. `standard` is every setting's own default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from stir_train.config.filling import filled_in
from stir_train.errors import ConfigError

Effort = Literal["quick", "standard", "thorough"]

EFFORTS: Mapping[Effort, Mapping[str, Any]] = {
    "quick": {
        # With 96, a real direction held at every token beat shuffled rewards in one half of two (benchmarks/directions_by_problems.py).
        "splits.num_harvest": 160,
        # More problems for fewer settings: with 80, a gain of 12 points on them had an interval of 12 to each side.
        "splits.num_tune": 96,
        # As many as tune: five methods answer them, and 128 took a quarter of an hour and more on two cores.
        "splits.num_test": 96,
        "rollout.num_samples": 4,
        "validation.num_rounds": 2,
        "validation.trials_per_round": 400,
        "validation.strengths": (2.0,),
        "validation.selection_problems": 32,
        "tune.strengths": (2.0,),
        "tune.doubts": (1.0,),
        "tune.candidates": (4,),
        # The place that has gained on real models; at the prompt's end nothing did but under a stated budget
        # (docs/results-real.md).
        "tune.vectors": {"every_token": (0.05,)},
        "tune.num_halvings": 0,
        "distill.num_samples": 2,
        # Nearly once through the samples that are kept, where two in three are right.
        "distill.num_steps": 20,
        "distill.warmup_steps": 3,
        "distill.batch_size": 8,
        "evaluate.num_random_vectors": 1,
    },
    "standard": {},
    "thorough": {
        "splits.num_harvest": 512,
        "splits.num_tune": 256,
        "splits.num_test": 1000,
        "rollout.num_samples": 16,
        "validation.num_rounds": 4,
        "validation.trials_per_round": 4000,
        "validation.selection_problems": 256,
        "tune.vectors": {
            "prompt_end": (0.15, 0.3, 0.45, 0.6),
            "every_token": (0.03, 0.045, 0.06, 0.1),
        },
        "tune.num_halvings": 2,
        "distill.num_samples": 8,
        "distill.num_steps": 600,
    },
}
"""Values of settings by dotted key."""


def require_effort(word: str, *, origin: str) -> Effort:
    """The effort of a name.

    Args:
        word: The name.
        origin: What gave it.

    Raises:
        ConfigError: If there is none.
    """
    efforts: tuple[Effort, ...] = get_args(Effort)
    for effort in efforts:
        if word == effort:
            return effort
    raise ConfigError(f"{origin}: {word!r} is none of {', '.join(efforts)}")


def with_effort(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what the effort sets and the values leave out; an effort that is none is left to be refused."""
    effort = values.get("effort", "standard")
    scaled = EFFORTS.get(effort, {}) if isinstance(effort, str) else {}  # type: ignore[call-overload]
    return filled_in(values, scaled)
