"""Every method on the same held-out items, with intervals; the test split is opened only here."""

from __future__ import annotations

import dataclasses
import json

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.pipeline import STAGE_NAMES
from stir_train.data.prompts import require_unseen, split_sha256
from stir_train.errors import StageError
from stir_train.evals.metrics import MethodMetrics, compare_to_baseline
from stir_train.evals.retention import StudentComparison, compare_students
from stir_train.evals.sampled import compare_samples
from stir_train.monitoring.console import caution, progress
from stir_train.recipes.baselines import (
    answering,
)
from stir_train.recipes.methods import (
    GREEDY,
    STEERED_METHOD,
    STUDENT,
    Method,
    build_methods,
    merge_students,
)
from stir_train.recipes.out_of_domain import (
    is_deployable,
    out_of_domain_job,
    out_of_domain_prompts,
    out_of_domain_results,
)
from stir_train.recipes.tune import (
    price_per_token,
)
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import (
    GenerationJob,
    generate_jobs,
    load_answers,
    sampling_params,
)
from stir_train.tools.compare import RESULTS_FILE
from stir_train.types.rollout import GradedRollout

RESULTS_SCHEMA = 4


def run(context: RunContext, stage: StageDir) -> Finish:
    """Answer the test split with every method and compare with greedy decoding."""
    config = context.config
    outside = out_of_domain_prompts(context)  # may refuse its source, and then nothing was opened
    openings = int(context.world.on_main("open the test split", lambda: _open_test(context)))
    methods = build_methods(context)
    if config.distill.enabled and config.model.sharding != "none":
        context.world.on_main("merge the students", lambda: merge_students(context))
    jobs = {method.name: _job(context, method) for method in methods}
    out_of_domain_jobs = {
        (name, method.name): out_of_domain_job(context, name, prompts, method)
        for name, prompts in outside.items()
        for method in methods
        if is_deployable(method)
    }
    sampled_jobs = {
        method.name: _sampled_job(context, method)
        for method in methods
        if is_deployable(method) and config.evaluate.num_samples is not None
    }
    # Method by method: a student is loaded once.
    everything = [
        job
        for method in methods
        for job in (
            jobs[method.name],
            *(job for (_, name), job in out_of_domain_jobs.items() if name == method.name),
            *(job for name, job in sampled_jobs.items() if name == method.name),
        )
    ]
    total = sum(len(job.prompts) * job.num_samples for job in everything)
    with progress(context.console, "evaluate", total, "problems") as advance:
        generate_jobs(context, stage, everything, advance)
    asked = Asked(methods, jobs, out_of_domain_jobs, sampled_jobs, openings)
    return lambda: _finish(context, stage, asked)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was asked of whom.

    Attributes:
        methods: In the order of the table.
        jobs: On the test split, by method.
        out_of_domain: On other tasks, by task and method.
        sampled: Samples of the test split, by method.
        openings: Choices that the test split was opened for so far.
    """

    methods: list[Method]
    jobs: dict[str, GenerationJob]
    out_of_domain: dict[tuple[str, str], GenerationJob]
    sampled: dict[str, GenerationJob]
    openings: int


def _job(context: RunContext, method: Method) -> GenerationJob:
    """A method's answers to the test split."""
    other = method.baseline
    return GenerationJob(
        prompts=context.splits["test"],
        num_samples=1,
        sampling=sampling_params(context, greedy=True),
        make_controller=method.make_controller,
        prefix=f"{method.name}/",
        engine=method.engine,
        answer=None if other is None else answering(context, other.name, other.setting),
    )


def _sampled_job(context: RunContext, method: Method) -> GenerationJob:
    """A method's samples of the test split, at the rollout temperature."""
    return dataclasses.replace(
        _job(context, method),
        num_samples=context.config.evaluate.num_samples or 1,
        sampling=sampling_params(context, greedy=False),
        prefix=f"sampled/{method.name}/",
    )


def _compare_students(
    context: RunContext, answers: dict[str, list[GradedRollout]]
) -> list[StudentComparison]:
    """Retention of every student; beside plain rejection sampling where that was trained too."""
    config = context.config.distill
    if not config.enabled:
        return []
    plain = [f"lora-{name}" for name, other in config.also.items() if other.samples == "plain"]
    return compare_students(
        answers,
        [STUDENT, *(f"lora-{name}" for name in config.also)],
        base=GREEDY,
        teacher=STEERED_METHOD,
        other=plain[0] if plain else GREEDY,
        num_resamples=context.config.evaluate.num_bootstrap,
    )


def _shown(row: MethodMetrics) -> dict[str, float | str]:
    """A method's row of the table on a dashboard."""
    low, high = row.delta_accuracy_ci95
    return {
        "method": row.name,
        "accuracy": row.accuracy,
        "delta_accuracy": row.delta_accuracy,
        "delta_accuracy_low": low,
        "delta_accuracy_high": high,
        "tokens_mean": row.tokens_mean,
        "delta_tokens_fraction": row.delta_tokens_fraction,
        "forward_passes_mean": row.forward_passes_mean,
    }


def _open_test(context: RunContext) -> int:
    """Refuse test items that were used before; count the choices that the split was opened for."""
    made_before = [name for name in STAGE_NAMES if name != "evaluate"]
    require_unseen(context.splits["test"], context.problems_used(made_before))
    openings = context.run_dir.record_opening(context.stage("tune").fingerprint())
    if openings > 1:
        context.console.print(
            caution(
                f"evaluate: the test split is opened for choice number {openings} of this run "
                "directory; its intervals are honest for the first alone"
            )
        )
    return openings


def _finish(context: RunContext, stage: StageDir, asked: Asked) -> Outcome:
    answers = {name: load_answers(context, stage, job) for name, job in asked.jobs.items()}
    _require_null_is_greedy(answers)
    rows = [
        compare_to_baseline(
            method.name,
            answers[method.name],
            answers[GREEDY],
            num_resamples=context.config.evaluate.num_bootstrap,
            price_per_token=price_per_token(context),
        )
        for method in asked.methods
    ]
    results = _results(context, asked.methods, rows, asked.openings)
    results["students"] = [student.as_dict() for student in _compare_students(context, answers)]
    samples = {name: load_answers(context, stage, job) for name, job in asked.sampled.items()}
    results["sampled"] = [
        dataclasses.asdict(
            compare_samples(
                name,
                given,
                samples[GREEDY],
                num_resamples=context.config.evaluate.num_bootstrap,
            )
        )
        for name, given in samples.items()
    ]
    results["out_of_domain"] = out_of_domain_results(context, stage, asked.out_of_domain)
    with stage.writing(RESULTS_FILE) as path:
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for row in rows:
        context.metrics.log(
            "evaluate",
            {f"{row.name}/accuracy": row.accuracy, f"{row.name}/tokens_mean": row.tokens_mean},
        )
    context.metrics.table("evaluate", "methods", [_shown(row) for row in rows])
    named = {row.name: row for row in rows}
    steered = named[STEERED_METHOD]
    student = f", LoRA student {named[STUDENT].accuracy:.1%}" if STUDENT in named else ""
    return Outcome(
        {"accuracy_greedy": named[GREEDY].accuracy, "accuracy_stir": steered.accuracy},
        f"{len(context.splits['test'])} test problems: greedy {named[GREEDY].accuracy:.1%}, "
        f"steered {steered.accuracy:.1%}{student}",
    )


def _results(
    context: RunContext, methods: list[Method], rows: list[MethodMetrics], openings: int
) -> dict[str, object]:
    described = [
        {
            **dataclasses.asdict(row),
            "settings": m.described,
            "label": m.label,
            "chosen_on": m.chosen_on,
        }
        for m, row in zip(methods, rows, strict=True)
    ]
    test = context.splits["test"]
    return {
        "schema": RESULTS_SCHEMA,
        "model": context.resources.described.identity.as_dict(),
        "task": context.config.task.name,
        "split": "test",
        "num_items": len(test),
        "items_sha256": split_sha256(test),
        "seeds": [context.config.seed],
        "test_openings": openings,
        "methods": described,
    }


def _require_null_is_greedy(answers: dict[str, list[GradedRollout]]) -> None:
    """Steering with an empty basis must be plain greedy, token for token."""
    null = answers.get("control-empty-basis")
    if null is None:
        return
    pairs = zip(null, answers[GREEDY], strict=True)
    differing = sum(a.rollout.token_ids != b.rollout.token_ids for a, b in pairs)
    if differing:
        raise StageError(
            f"steering with an empty basis changed {differing} of {len(null)} answers; "
            "the comparison would be biased, so it stops here (please report this)"
        )
