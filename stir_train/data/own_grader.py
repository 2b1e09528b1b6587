"""Graders of the user's own, named by import path.

A grader is called with a response (``str``) and a `Gold`, and returns a `Grade`, or just whether the
response is right. A function is called as it is; a class is made once per process, with the
`TaskConfig`, and its object is called. It runs in the pool of checkers: a response that takes too
long, or kills the process, is counted apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from stir_train.config.import_path import load_object
from stir_train.config.inputs import TaskConfig
from stir_train.errors import ConfigError, DataError
from stir_train.types.rollout import Gold, Grade

OwnGrader = Callable[[str, Gold], object]
SETTING = "task.grader"


def load_grader(config: TaskConfig) -> OwnGrader:
    """Import the grader that a task names, and make its object if it is a class.

    Raises:
        ConfigError: If there is none, it cannot be made, or it cannot be called.
    """
    found = load_object(config.grader, kind=SETTING)
    if isinstance(found, type):
        try:
            found = found(config)
        except Exception as error:  # code that is not ours raises what it likes
            raise ConfigError(
                f"{SETTING}: {config.grader}(task) failed: {type(error).__name__}: {error}"
            ) from error
    if not callable(found):
        raise ConfigError(
            f"{SETTING}: {config.grader} cannot be called; it must take a response and a Gold, and "
            "return a Grade or whether the response is right"
        )
    return found


def grade_own(task_json: str, response: str, gold: Gold) -> Grade:
    """Grade one response in a worker.

    Raises:
        DataError: If the grader fails, or returns something else than it may.
    """
    config, grader = _held(task_json)
    try:
        verdict = grader(response, gold)
    except Exception as error:  # code that is not ours raises what it likes
        raise DataError(
            f"{SETTING}: {config.grader} failed: {type(error).__name__}: {error}; gold answer "
            f"{gold.answer!r:.80}, response ...{response[-80:]!r}"
        ) from error
    if isinstance(verdict, Grade):
        return verdict
    if not isinstance(verdict, bool):
        raise DataError(
            f"{SETTING}: {config.grader} must return a Grade or a bool, not {verdict!r:.80}"
        )
    return Grade(verdict, response[-200:].strip(), "equal" if verdict else "different")


@lru_cache(maxsize=8)
def _held(task_json: str) -> tuple[TaskConfig, OwnGrader]:
    config = TaskConfig.model_validate_json(task_json)
    return config, load_grader(config)
