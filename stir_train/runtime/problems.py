"""Read a run's problems, embedded or from a source. Torch-free: a login node checks them with this."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from stir_train.config.run import RunConfig
from stir_train.data.problems import SourceProblem, read_source
from stir_train.data.prompts import cut_splits
from stir_train.errors import ConfigError
from stir_train.tasks.families import FAMILIES, HELD_OUT_POOL
from stir_train.tasks.problem import held_out_problems


def read_problems(config: RunConfig) -> list[SourceProblem]:
    """Every problem the configured task offers, those of its official test split marked.

    Raises:
        ConfigError: If the task names neither an embedded family nor a source.
    """
    task = config.task
    if task.source is not None:
        problems = read_source(task)
        if task.test_split is not None:
            tests = task.model_copy(update={"hub_split": task.test_split})
            problems += [replace(problem, is_test=True) for problem in read_source(tests)]
        return problems
    if task.name not in FAMILIES:
        raise ConfigError(
            f"task.name: {task.name!r} is no embedded family ({', '.join(FAMILIES)}); "
            "set task.source to a dataset to read another task"
        )
    return list(_embedded_problems(task.name))


@cache
def _embedded_problems(family: str) -> tuple[SourceProblem, ...]:
    """All that an embedded family offers: drawn once a process, as nothing but its name decides them."""
    return tuple(
        SourceProblem(p.question, p.answer, content=p.content, kind=p.kind)
        for p in held_out_problems(FAMILIES[family], HELD_OUT_POOL)
    )


def require_problems(config: RunConfig) -> None:
    """Read the problems and cut the splits.

    Raises:
        StirError: If either fails.
    """
    cut_splits(read_problems(config), config.splits)
