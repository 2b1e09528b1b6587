"""What is known of public tasks: where they live, their columns in the variants found, their grader.

A task's entry fills the settings that a configuration leaves out; `source` may be set to a local
copy in any of these schemas. Hub ids carry no revision here: set `task.revision` to pin one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from stir_train.errors import ConfigError

_STEPS = "{question}\n\nThink step by step, with a blank line between steps. "
_NUMBER = _STEPS + "End with a line 'Answer: <number>'."
_BOXED = _STEPS + "Put the final answer in \\boxed{}."
_LETTER = _STEPS + "End with a line 'Answer: <letter>'."
_YES_NO = _STEPS + "End with a line 'Answer: <yes or no>'."
_ANSWER = _STEPS + "End with a line 'Answer: <answer>'."
TEMPLATES: Mapping[str, str] = {
    "numeric": _NUMBER,
    "math": _BOXED,
    "choice": _LETTER,
    "boolean": _YES_NO,
    "exact": _ANSWER,
}
"""A prompt that asks for an answer as a grader reads it."""

_ONE_NUMBER = r"-?\d[\d,]*(\.\d+)?(/\d+)?"
"""A gold answer that is one number."""
_TRAIN_AND_TEST = {"hub_split": "train", "test_split": "test"}
_GSM8K = {
    "question_fields": ("question",),
    "answer_fields": ("answer",),
    "answer_format": "after_hashes",
    "grader": "numeric",
    "template": _NUMBER,
}
_COMPETITION = {
    "question_fields": ("problem", "Problem", "question"),
    "answer_fields": ("answer", "Answer", "expected_answer"),
    "template": _BOXED,
    "answer_marker": "\\boxed{}",
}
_MATH = {
    "question_fields": ("problem", "question"),
    "answer_fields": ("answer", "solution"),
    "kind_fields": ("type", "subject"),
    "grader": "math",
    "template": _BOXED,
    "answer_marker": "\\boxed{}",
}
_OPTIONS = {
    "question_fields": ("question.stem", "question_stem", "question"),
    "answer_fields": ("answerKey", "answer_key", "answer"),
    "choices_fields": ("question.choices", "choices", "options"),
    "grader": "choice",
    "template": _LETTER,
}

KNOWN_TASKS: Mapping[str, Mapping[str, Any]] = {
    "gsm8k": {"source": "openai/gsm8k", "subset": "main", **_TRAIN_AND_TEST, **_GSM8K},
    "gsm8k-platinum": {
        "source": "madrylab/gsm8k-platinum",
        "subset": "main",
        "hub_split": "test",
        **_GSM8K,
        "kind_fields": ("cleaning_status",),
    },
    "math500": {"source": "HuggingFaceH4/MATH-500", "hub_split": "test", **_MATH},
    "math": {
        "source": "EleutherAI/hendrycks_math",
        "subset": "algebra",
        **_TRAIN_AND_TEST,
        **_MATH,
    },
    "aime2024": {
        "source": "HuggingFaceH4/aime_2024",
        "hub_split": "train",
        **_COMPETITION,
        "grader": "numeric",
    },
    "aime2025": {
        "source": "math-ai/aime25",
        "hub_split": "test",
        **_COMPETITION,
        "grader": "numeric",
    },
    "amc2023": {
        "source": "math-ai/amc23",
        "hub_split": "test",
        **_COMPETITION,
        "grader": "numeric",
    },
    "arc-challenge": {
        "source": "allenai/ai2_arc",
        "subset": "ARC-Challenge",
        **_TRAIN_AND_TEST,
        **_OPTIONS,
    },
    "openbookqa": {
        "source": "allenai/openbookqa",
        "subset": "main",
        **_TRAIN_AND_TEST,
        **_OPTIONS,
    },
    "commonsenseqa": {
        "source": "tau/commonsense_qa",
        "hub_split": "train",
        "test_split": "validation",  # its own test split has no answers
        **_OPTIONS,
        "kind_fields": ("question_concept", "question.question_concept"),
    },
    "strategyqa": {
        "source": "ChilleD/StrategyQA",
        **_TRAIN_AND_TEST,
        "question_fields": ("question", "input"),
        "answer_fields": ("answer",),
        "grader": "boolean",
        "template": _YES_NO,
    },
    "gsm-plus": {  # a question whose condition was taken away has no number as its answer
        "source": "qintongli/GSM-Plus",
        "hub_split": "test",
        "question_fields": ("question",),
        "answer_fields": ("answer",),
        "answer_format": "verbatim",
        "only_answers": _ONE_NUMBER,
        "kind_fields": ("perturbation_type",),
        "grader": "numeric",
        "template": _NUMBER,
    },
    "asdiv": {  # some of its answers are words, pairs or times
        "source": "EleutherAI/asdiv",
        "subset": "asdiv",
        "hub_split": "validation",
        "question_fields": ("body+question", "Body+Question", "question"),
        "answer_fields": ("answer", "Answer"),
        "answer_format": "before_unit",
        "only_answers": _ONE_NUMBER,
        "kind_fields": ("solution_type", "Solution-Type"),
        "grader": "numeric",
        "template": _NUMBER,
    },
    "svamp": {
        "source": "ChilleD/SVAMP",
        **_TRAIN_AND_TEST,
        "question_fields": ("question_concat", "Body+Question", "body+question", "question"),
        "answer_fields": ("Answer", "answer"),
        "kind_fields": ("Type", "type"),
        "grader": "numeric",
        "template": _NUMBER,
    },
}
"""Settings of `task` by `task.name`; `custom`, like any other name, has none."""

NUM_PROBLEMS: Mapping[str, tuple[int, int]] = {
    "gsm8k": (7473, 1319),
    "gsm8k-platinum": (1209, 0),
    "math500": (500, 0),
    "math": (1744, 1187),
    "aime2024": (30, 0),
    "aime2025": (30, 0),
    "amc2023": (40, 0),
    "arc-challenge": (1119, 1172),
    "openbookqa": (4957, 500),
    "commonsenseqa": (9741, 1221),
    "strategyqa": (1603, 687),
    "gsm-plus": (9233, 0),
    "asdiv": (2096, 0),
    "svamp": (700, 300),
}
"""As published, of a known task's `hub_split` and `test_split`: what fits, before it is read."""

REASONING_GYM = "reasoning-gym:"
"""Before the name of a dataset that the package reasoning-gym generates, as a task's name or source."""
NUMERIC_DATASETS = frozenset(
    [
        "basic_arithmetic",
        "chain_sum",
        "count_bits",
        "count_primes",
        "gcd",
        "gsm_symbolic",
        "largest_island",
        "lcm",
        "leg_counting",
        "letter_counting",
        "maze",
        "number_sequence",
        "products",
        "rectangle_count",
        "rotten_oranges",
        "simple_equations",
        "simple_geometry",
    ]
)
"""Datasets of reasoning-gym whose answers are single numbers, which our own grader reads leniently."""


def known_settings(name: str) -> Mapping[str, Any]:
    """What a task's name fills in; nothing for a label of one's own."""
    if not name.startswith(REASONING_GYM):
        return KNOWN_TASKS.get(name, {})
    if name.removeprefix(REASONING_GYM) in NUMERIC_DATASETS:
        return {"source": name, "grader": "numeric", "template": _NUMBER}
    return {
        "source": name,
        "grader": "stir_train.data.reasoning_gym:ReasoningGymScorer",
        "template": _ANSWER,
    }


def require_known_task(name: str, *, origin: str) -> None:
    """Refuse a name that fills nothing in, where one that does was asked for.

    Args:
        name: A task's name.
        origin: What gave it.

    Raises:
        ConfigError: Naming the nearest known task.
    """
    if known_settings(name):
        return
    near = difflib.get_close_matches(name, KNOWN_TASKS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(KNOWN_TASKS)}."
    raise ConfigError(
        f"{origin}: no known task {name!r}; {hint} For a task of your own leave it out and give "
        "settings, as in grader=numeric"
    )
