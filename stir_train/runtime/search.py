"""Successive halving over answerers: candidates answer parts of a split, the worse half is given up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stir_train.answering.interface import Answerer
from stir_train.artifacts.run_dir import StageDir
from stir_train.evals.halving import Candidate, Outcome, successive_halving
from stir_train.evals.metrics import compare_to_baseline, mean_utility
from stir_train.runtime.answerers import utility_of
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import (
    GenerationJob,
    generate_after,
    load_answers,
    sampling_params,
)
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.results import MethodMetrics
from stir_train.types.rollout import GradedRollout, Prompt

Parts = Sequence[Sequence[Prompt]]
"""The problems, in parts that double how many there are so far."""


def search_by_halving(
    context: RunContext,
    stage: StageDir,
    candidates: Mapping[Candidate, Answerer],
    parts: Parts,
    *,
    within_groups: bool = False,
    before: Sequence[GenerationJob] = (),
) -> list[Outcome]:
    """Let candidates answer greedily, part by part, giving up the worse half in between. Collective.

    What is answered already is not answered again, so a search that was stopped goes on where it was.

    Args:
        context: The run.
        stage: Takes the answers, a candidate's under its name.
        candidates: What answers for each.
        parts: The problems.
        within_groups: Halve every group by itself.
        before: Jobs that are made first, since the candidates may go on from what they make.
    """

    def measure(left: Sequence[Candidate], num_parts: int) -> list[float]:
        jobs = [part_job(context, c, candidates[c], parts, num_parts - 1) for c in left]
        first = before if num_parts == 1 else ()
        total = sum(len(job.prompts) for job in (*first, *jobs))
        title = f"{stage.name} {num_parts}/{len(parts)}" if len(parts) > 1 else stage.name
        with context.progress(title, total, "problems") as advance:
            generate_after(context, stage, first, jobs, advance)
        utility = utility_of(context.config)

        def read() -> list[float]:
            seen = parts[:num_parts]
            return [
                mean_utility(answers_of(context, stage, c, candidates[c], seen), utility)
                for c in left
            ]

        found: list[float] = context.world.on_main(f"{stage.name} after part {num_parts}", read)
        return found

    return successive_halving(list(candidates), len(parts), measure, within_groups=within_groups)


def part_job(
    context: RunContext, candidate: Candidate, answerer: Answerer, parts: Parts, number: int
) -> GenerationJob:
    """A candidate's greedy answers to one part."""
    return GenerationJob(
        parts[number],
        answerer,
        sampling_params(context, greedy=True),
        prefix=f"{part_name(candidate, number)}/",
    )


def part_name(candidate: Candidate, number: int) -> str:
    """The set of a candidate's answers to one part."""
    return f"{candidate.name}/part-{number}"


def answers_of(
    context: RunContext, stage: StageDir, candidate: Candidate, answerer: Answerer, parts: Parts
) -> list[GradedRollout]:
    """A candidate's answers to some first parts together."""
    return [
        item
        for number in range(len(parts))
        for item in load_answers(
            context, stage, part_job(context, candidate, answerer, parts, number)
        )
    ]


def load_parts(stage: StageDir, name: str) -> list[GradedRollout]:
    """The answers of a candidate of a finished search, all its parts together."""
    store = RolloutStore(stage)
    parts = [found for found in store.sets() if found.startswith(f"{name}/part-")]
    return [item for part in parts for item in store.read(part)]


def compare_in_run(
    context: RunContext,
    name: str,
    answers: Sequence[GradedRollout],
    baseline: Sequence[GradedRollout],
) -> MethodMetrics:
    """A method's figures against a baseline on the same problems, as the run weighs and resamples."""
    return compare_to_baseline(
        name,
        answers,
        baseline,
        num_resamples=context.config.evaluate.num_bootstrap,
        utility=utility_of(context.config),
    )
