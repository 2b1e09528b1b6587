"""Problems of the reasoning-gym package, and its own scorers as a grader.

``task.name: reasoning-gym:NAME`` makes a dataset of that name with `task.parameters`. What a generator
makes depends on its parameters and on the version of the package, so the hash of the splits covers both.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stir_train.config.inputs import TaskConfig
from stir_train.config.tasks import REASONING_GYM
from stir_train.data.extraction import answer_parts, statements
from stir_train.errors import ConfigError, DataError
from stir_train.types.rollout import Gold, Grade

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

DEFAULTS: Mapping[str, Any] = {"size": 4000, "seed": 0}
"""Parameters of every generator, where a task sets none: how many problems, and from which seed."""


def reasoning_gym_problems(config: TaskConfig, source: str) -> list[Mapping[str, Any]]:
    """The rows of a ``reasoning-gym:NAME`` source; of equal questions the first.

    Raises:
        ConfigError: If the package is missing, or knows no such name or parameters.
    """
    entries = _entries(source, json.dumps(config.parameters))
    return [
        {"question": question, "answer": entry["answer"]} for question, entry in entries.items()
    ]


class ReasoningGymScorer:
    """Asks a dataset's own scorer about what a response states; right is its full score of 1.

    What is asked about: the statements of a response in the order of `stir_train.data.grading`; without
    any, unless only marked ones count, its last line.

    Raises:
        ConfigError: If the task's source is no single reasoning-gym dataset.
    """

    def __init__(self, config: TaskConfig) -> None:
        source = config.sources[0] if len(config.sources) == 1 else ""
        if not source.startswith(REASONING_GYM):
            raise ConfigError(
                f"task.grader: the scorers of reasoning-gym grade one {REASONING_GYM}NAME source, not "
                f"{', '.join(config.sources) or 'an embedded family'}"
            )
        self._config, self._source = config, source
        parameters = json.dumps(config.parameters)
        self._dataset = _dataset(source, parameters)
        self._entries = _entries(source, parameters)

    def __call__(self, response: str, gold: Gold) -> Grade:
        """Grade a response to the problem whose question the gold answer carries."""
        entry = self._entries.get(gold.question)
        if entry is None:
            raise DataError(f"{self._source} makes no such problem: {gold.question!r:.80}")
        found, had_marker = self._stated(response)
        if not found:
            return Grade(correct=False, extracted="", reason="no answer", had_marker=had_marker)
        is_right = float(self._dataset.score_answer(found, entry)) >= 1.0
        return Grade(is_right, found[:200], "equal" if is_right else "different", had_marker)

    def _stated(self, response: str) -> tuple[str, bool]:
        only_marked = self._config.answer_reading == "marker"
        had_marker = False
        for part in answer_parts(response):
            stated = list(statements(part, self._config.answer_marker))
            had_marker = had_marker or any(statement.is_marked for statement in stated)
            kept = [s for s in stated if s.is_marked or not only_marked]
            if kept and kept[0].is_part:
                return "", had_marker
            texts = [s.text.strip() for s in kept]
            if not only_marked:
                texts += [line.strip() for line in part.splitlines()[-1:]]
            if found := next((text for text in texts if text), ""):
                return found, had_marker
        return "", had_marker


@lru_cache(maxsize=8)
def _dataset(source: str, parameters_json: str) -> ProceduralDataset:
    try:
        with warnings.catch_warnings():
            # Python's, on a module of its requirements, where nobody has compiled that yet.
            warnings.simplefilter("ignore", SyntaxWarning)
            import reasoning_gym  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"task.source: {source} needs the package reasoning-gym: in the clone, pip "
            "install '.[reasoning-gym]'"
        ) from error
    name = source.removeprefix(REASONING_GYM)
    parameters = json.loads(parameters_json)
    try:
        return reasoning_gym.create_dataset(name, **{**DEFAULTS, **parameters})
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"task.source: reasoning-gym makes no {name!r} with {parameters}: {error}"
        ) from error


@lru_cache(maxsize=8)
def _entries(source: str, parameters_json: str) -> dict[str, dict[str, Any]]:
    """Entries by question; of equal questions the first."""
    entries: dict[str, dict[str, Any]] = {}
    for entry in _dataset(source, parameters_json):
        entries.setdefault(entry["question"], {**entry, "answer": str(entry["answer"])})
    return entries
