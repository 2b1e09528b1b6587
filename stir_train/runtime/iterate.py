"""Generations of a run: a student's merged weights are the next base, while the tune split improves.

Expert iteration: the harvest problems are the same in every generation, the rollouts are the new
base's own. Students are compared on the tune split alone; the test split is opened once, at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from stir_train.answering.methods import GREEDY
from stir_train.artifacts.atomic import json_sha256
from stir_train.artifacts.run_dir import RunDir
from stir_train.config.inputs import SplitName
from stir_train.config.pipeline import STAGE_NAMES
from stir_train.config.run import RunConfig
from stir_train.data.prompts import split_sha256
from stir_train.distributed.world import World, open_world
from stir_train.errors import ConfigError
from stir_train.models.load import load_model
from stir_train.runtime.abilities import require_backend
from stir_train.runtime.answerers import other_model_answerer, plain_answerer
from stir_train.runtime.attempt import enter_run
from stir_train.runtime.context import Outcome, RunContext
from stir_train.runtime.driver import begin, finish, run_stages
from stir_train.runtime.generation import (
    GenerationJob,
    generate_jobs,
    load_answers,
    sampling_params,
)
from stir_train.runtime.opening import open_test_split
from stir_train.runtime.search import compare_in_run
from stir_train.runtime.students import merge_adapter
from stir_train.runtime.upstream import WHY, students_taught
from stir_train.stores.results import RESULTS_SCHEMA, save_results
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.results import MethodRow, Results
from stir_train.types.rollout import GradedRollout

UP_TO_STUDENT = STAGE_NAMES[: STAGE_NAMES.index("distill") + 1]
STUDENTS, TEST = "students", "test"
LEAST_MIXED = 0.05
"""A base of which fewer problems than this have right and wrong samples cannot be contrasted."""


def run_iterate(config: RunConfig, console: Console, argv: Sequence[str]) -> Results:
    """Make generations until the tune split stops improving; compare all on the test split.

    The run directory holds a run a generation (``generation-1``, ...), every student's merged weights
    (``students/1``, ...), its answers to the tune split and, at the end, ``test``.

    Returns:
        What ``test/results.json`` holds.

    Raises:
        ConfigError: If the run does not distil, or its rollouts come from elsewhere.
        StageError: If a stage needs what the run's backend lacks.
    """
    if not config.distill.enabled:
        raise ConfigError("distill.enabled is off: without a student there is no next generation")
    if config.external.is_used:
        raise ConfigError(
            "external: rollouts of the base teach no later generation; iterate samples from each "
            "generation's own model, so take external out"
        )
    require_backend(config, UP_TO_STUDENT)
    with open_world() as world, enter_run(config, console, argv, world) as context:
        best, best_answers = 0, _answers(context, "tune", 0)
        made = 0
        for generation in range(1, config.iterate.max_generations + 1):
            if not _make_generation(context, generation, argv, world):
                break
            made = generation
            answers = _answers(context, "tune", generation)
            gain = compare_in_run(context, str(generation), answers, best_answers)
            low, high = gain.delta_utility_ci95
            context.console.print(
                f"generation {generation}: {gain.accuracy:.1%} of the tune split in "
                f"{gain.tokens_mean:.1f} tokens; utility {gain.delta_utility:+.3f} "
                f"[{low:+.3f}, {high:+.3f}] over generation {best}"
            )
            if not low > 0:
                break
            best, best_answers = generation, answers
        return _finish(context, best, made)


def generation_config(config: RunConfig, generation: int) -> RunConfig:
    """The run of a generation (from 1): the same settings, on the last one's student."""
    model = config.model
    if generation > 1:
        base = str(merged_student(config, generation - 1))
        model = model.model_copy(update={"name": base, "revision": None})
    return config.model_copy(
        update={
            "name": f"generation-{generation}",
            "output_dir": config.directory,
            "model": model,
        }
    )


def merged_student(config: RunConfig, generation: int) -> Path:
    """Where a generation's student lies, its adapter folded into its base."""
    return config.directory / STUDENTS / str(generation)


def _make_generation(
    context: RunContext, generation: int, argv: Sequence[str], world: World
) -> bool:
    """Run a generation up to its student, and merge that; False if its base leaves nothing to learn."""
    config = generation_config(context.config, generation)
    context.console.print(f"generation {generation}, from {config.model.name}")
    with enter_run(config, context.console, argv, world) as inner:
        run_stages(inner, UP_TO_STUDENT[:1], redo=False)
        share = float(world.on_main("headroom", lambda: _mixed_share(inner)))
        if share < LEAST_MIXED:
            context.console.print(
                f"generation {generation}: {share:.0%} of the harvest problems have right and wrong "
                "samples; nothing is left to learn from contrasting them"
            )
            return False
        if run_stages(inner, UP_TO_STUDENT[1:], redo=False) is not None:
            context.console.print(f"generation {generation}: ended without a student")
            return False
        if "" not in students_taught(inner.run_dir, config):
            context.console.print(f"generation {generation}: {WHY}: no student is taught by it")
            return False
        target = merged_student(context.config, generation)
        world.on_main("merge", lambda: merge_adapter(inner, target))
    return True


def _mixed_share(inner: RunContext) -> float:
    """Share of the harvest problems whose samples are neither all right nor all wrong."""
    outcomes: dict[str, set[bool]] = {}
    for outcome in RolloutStore(inner.stage("rollout")).require_complete().outcomes():
        outcomes.setdefault(outcome.prompt_id, set()).add(outcome.correct)
    return sum(len(found) == 2 for found in outcomes.values()) / len(outcomes)


def _job(context: RunContext, split: SplitName, generation: int) -> GenerationJob:
    """Greedy answers of the base (0) or of a generation's student."""
    merged = str(merged_student(context.config, generation))
    model = context.config.model.model_copy(update={"name": merged, "revision": None})
    answerer = plain_answerer(context)
    if generation:
        answerer = other_model_answerer(
            context, f"generation {generation}", lambda: load_model(model, context.world)
        )
    return GenerationJob(
        context.splits[split],
        answerer,
        sampling_params(context, greedy=True),
        prefix=f"{generation}/",
    )


def _answers(context: RunContext, split: SplitName, generation: int) -> list[GradedRollout]:
    """Made once, in a stage of its own."""
    config = context.config
    settings = {
        "student": _fingerprint(config, generation) if generation else "base",
        "seed": config.seed,
        "num_threads": config.num_threads,
        "task": config.task,
        "control_points": config.control_points,
        "generation": config.generation,
        "rollout": config.rollout,
    }
    name = f"{split}-{generation}"
    job = _job(context, split, generation)
    stage = begin(context, name, settings, splits=(split,))
    if stage is not None:
        title = f"{split} split, generation {generation}"
        with context.progress(title, len(job.prompts), "problems") as advance:
            generate_jobs(context, stage, [job], advance)
        finish(context, stage, lambda: Outcome({"num_items": len(job.prompts)}, title))
    return load_answers(context, context.stage(name), job)


def _fingerprint(config: RunConfig, generation: int) -> str:
    """Of a generation's student, by what it was made from."""
    return RunDir(config.directory / f"generation-{generation}").stage("distill").fingerprint()


def _open_test(context: RunContext, best: int, made: int) -> int:
    """Refuse test items that a generation was made from; count the choices the split was opened for."""
    generations = [RunDir(context.config.directory / f"generation-{g}") for g in range(1, made + 1)]
    used = {
        f"{run.path.name}: {stage}": ids
        for run in generations
        for stage, ids in dataclasses.replace(context, run_dir=run)
        .problems_used([*STAGE_NAMES])
        .items()
    }
    students = [_fingerprint(context.config, generation) for generation in range(1, made + 1)]
    return open_test_split(context, json_sha256({"students": students, "chosen": best}), used)


def _finish(context: RunContext, best: int, made: int) -> Results:
    """The base and every generation on the test split; which one the tune split chose."""
    openings = int(
        context.world.on_main("open the test split", lambda: _open_test(context, best, made))
    )
    answers = {g: _answers(context, "test", g) for g in range(made + 1)}
    names = {g: GREEDY if g == 0 else f"generation-{g}" for g in answers}
    rows = [compare_in_run(context, names[g], given, answers[0]) for g, given in answers.items()]
    identity, test = context.resources.described.identity, context.splits["test"]
    results = Results(
        schema=RESULTS_SCHEMA,
        model=identity.name,
        model_sha256=identity.fingerprint(),
        task=context.config.task.name,
        split="test",
        num_items=len(test),
        items_sha256=split_sha256(test),
        seeds=(context.config.seed,),
        test_openings=openings,
        chosen=names[best],
        methods=tuple(
            MethodRow(row, row.name, "tune" if row.name == names[best] else "nothing")
            for row in rows
        ),
    )
    config = context.config
    settings = {
        "generations": made,
        "chosen": best,
        "seed": config.seed,
        "num_threads": config.num_threads,
        "utility": config.utility,
        "num_bootstrap": config.evaluate.num_bootstrap,
        "generation": config.generation,
    }
    stage = begin(context, TEST, settings, reads=[f"test-{g}" for g in answers], splits=("test",))
    if stage is not None:

        def save() -> Outcome:
            save_results(stage, results)
            return Outcome({"generations": made}, f"tune chose {names[best]}")

        finish(context, stage, save)
    return results
