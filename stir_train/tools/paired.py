"""Two methods, of one run or of two, on the same test problems: the difference and its interval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.errors import ConfigError, StageError
from stir_train.evals.metrics import compare_to_baseline
from stir_train.evals.verdict import describe_pair
from stir_train.runtime.answerers import utility_of
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.results import MethodMetrics
from stir_train.types.rollout import GradedRollout


@dataclass(frozen=True)
class Answered:
    """A method of a finished evaluation.

    Attributes:
        run: The run's directory.
        method: The method, as its row is called.
    """

    run: Path
    method: str


def pair_of(runs: list[Path], methods: str) -> tuple[Answered, Answered]:
    """What is compared with what: the second is the one that the first is held against.

    Args:
        runs: One run, or two.
        methods: One method of two runs, or two methods with a comma between them, of one run or one of each.

    Raises:
        ConfigError: If these are not two.
    """
    names = [name.strip() for name in methods.split(",")]
    both_runs = runs * 2 if len(runs) == 1 else runs
    both_names = names * 2 if len(names) == 1 else names
    pairs = list(zip(both_runs, both_names, strict=False))
    if len(runs) > 2 or len(names) > 2 or not all(names) or len(set(pairs)) != 2:
        raise ConfigError(
            f"--paired {methods} of {len(runs)} runs: give one method and two runs, or two methods (A,B) and one run "
            "or two"
        )
    first, second = (Answered(*pair) for pair in pairs)
    return first, second


def compare_pair(first: Answered, second: Answered) -> tuple[MethodMetrics, MethodMetrics]:
    """Figures of both, their differences from the second.

    Raises:
        ArtifactError: If answers are missing or damaged.
        StageError: If the two did not answer the same problems.
    """
    config = load_config(RunConfig, first.run / "config.yaml")
    answers = [_answers(one) for one in (first, second)]
    problems = [{graded.rollout.prompt_id for graded in found} for found in answers]
    if problems[0] != problems[1]:
        raise StageError(
            f"{first.method} of {first.run} answered {len(problems[0])} test problems and {second.method} of "
            f"{second.run} {len(problems[1])}, {len(problems[0] & problems[1])} of them the same: a paired "
            "comparison needs the same problems (task, splits and seed)"
        )

    by_problem = {graded.rollout.prompt_id: graded for graded in answers[0]}
    answers[0] = [by_problem[graded.rollout.prompt_id] for graded in answers[1]]

    def figures(name: str, method: list[GradedRollout]) -> MethodMetrics:
        return compare_to_baseline(
            name,
            method,
            answers[1],
            num_resamples=config.evaluate.num_bootstrap,
            utility=utility_of(config),
        )

    return figures(first.method, answers[0]), figures(second.method, answers[1])


def describe(first: Answered, second: Answered) -> str:
    """The comparison in a sentence."""
    found, reference = compare_pair(first, second)
    alike = first.run == second.run
    names = [one.method if alike else f"{one.method} of {one.run}" for one in (first, second)]
    num_items = len(_answers(second))
    return describe_pair(names[0], found, names[1], reference, num_items) + (
        f" It is right where the other is wrong in {found.wins}, the other way round in {found.losses} "
        f"(McNemar's exact test: p = {found.mcnemar_p:.2g})."
    )


def _answers(one: Answered) -> list[GradedRollout]:
    found = RolloutStore(RunDir(one.run).stage("evaluate"))
    if one.method not in found.sets():
        raise ConfigError(
            f"{one.run}: no method {one.method}; it has {', '.join(found.sets()) or 'none'}"
        )
    return found.read(one.method)
