"""Every method on the same held-out items, with intervals; the test split is opened only here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from stir_train.answering.methods import (
    GREEDY,
    NULL_CONTROL,
    PUBLISHED,
    STEERED,
    STUDENT,
    Method,
    published_rule,
    student_label,
)
from stir_train.artifacts.run_dir import StageDir
from stir_train.baselines.registry import load_baseline
from stir_train.config.pipeline import stage as stage_of
from stir_train.config.steering import NoSteering, SteeringConfig, VectorSteering, changed
from stir_train.data.prompts import describe_test_split, split_sha256
from stir_train.errors import StageError
from stir_train.evals.metrics import fed_prompts
from stir_train.evals.retention import compare_students
from stir_train.evals.sample_table import sample_rows
from stir_train.evals.sampled import compare_samples
from stir_train.runtime.abilities import missing_abilities
from stir_train.runtime.answerers import baseline_answerer, plain_answerer, steered_answerer
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import (
    generate_after,
    load_answers,
)
from stir_train.runtime.method_jobs import Jobs, going_on_from_greedy, jobs_of
from stir_train.runtime.opening import open_test_split
from stir_train.runtime.reuse import describe_reuse, mean_reused
from stir_train.runtime.search import compare_in_run
from stir_train.runtime.students import merge_students, student_answerer
from stir_train.runtime.upstream import abstains, students_taught
from stir_train.runtime.vector_controls import vector_controls
from stir_train.steering.controls import empty_basis, random_directions, shuffled_keys
from stir_train.stores.reports import load_report
from stir_train.stores.results import RESULTS_SCHEMA, save_results
from stir_train.stores.steering import load_basis
from stir_train.types.directions import DirectionSet
from stir_train.types.results import (
    BaselinesReport,
    MethodMetrics,
    OutOfDomainResults,
    Results,
    SampledMetrics,
    StudentComparison,
    TuneReport,
)
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import ControlBasis


def run(context: RunContext, stage: StageDir) -> Finish:
    """Answer the test split with every method and compare with greedy decoding."""
    config = context.config
    others = context.out_of_domain  # may refuse its source, and then nothing was opened
    openings = int(context.world.on_main("open the test split", lambda: _open_test(context)))
    methods = build_methods(context)
    if students_taught(context.run_dir, config) and config.model.sharding != "none":
        context.world.on_main("merge the students", lambda: merge_students(context))
    jobs = going_on_from_greedy(
        context, stage, {method.name: jobs_of(context, method, others) for method in methods}
    )
    # Method by method: a student is loaded once.
    everything = {job.prefix: job for asked in jobs.values() for job in asked.all}
    total = sum(len(job.prompts) * job.num_samples for job in everything.values())
    with context.progress("evaluate", total, "problems") as advance:
        first = {job.prefix: job for job in jobs[GREEDY].all}
        rest = [job for prefix, job in everything.items() if prefix not in first]
        generate_after(context, stage, list(first.values()), rest, advance)
    return lambda: _finish(context, stage, methods, jobs, openings)


def build_methods(context: RunContext) -> list[Method]:
    """Greedy, the published rule, the tuned controller, its controls, baselines and students."""
    choice = context.steering.choice()
    basis = context.steering.basis() if context.config.needs_basis else None
    methods = [Method(GREEDY, plain_answerer(context), "nothing", is_deployable=True)]
    lacking = missing_abilities(context.config, published_rule())
    if basis is not None and lacking:
        context.console.print(
            f"  {PUBLISHED}: left out; the backend cannot {' and '.join(lacking)}"
        )
    elif basis is not None:
        selected, _ = load_basis(context.stage("basis"))
        published = selected.select(~selected.saves_tokens)
        methods.append(
            _steered(context, PUBLISHED, published_rule(), "published defaults", basis=published)
        )
    methods.append(_steered(context, STEERED, choice, basis=basis))
    if context.config.evaluate.controls and not isinstance(choice, NoSteering):
        controls = _controls(context, choice, basis)
        methods += [dataclasses.replace(control, is_yardstick=True) for control in controls]
    methods += [
        _steered(context, f"stir-{settings.mode}", settings, basis=basis)
        for settings in load_report(context.stage("tune"), TuneReport).best_of_each_mode()
        if settings != choice
    ]
    methods += [
        _steered(context, f"variant-{name}", varied, "tune, then changed", basis=basis)
        for name, varied in _variants(context, choice).items()
        if varied != choice
    ]
    return [*methods, *_baselines(context), *_students(context)]


def _steered(
    context: RunContext,
    name: str,
    settings: SteeringConfig,
    chosen_on: str = "tune",
    *,
    basis: ControlBasis | None = None,
    directions: DirectionSet | None = None,
) -> Method:
    """A controller over the run's basis and directions, or over others."""
    answerer = steered_answerer(context, settings, basis, directions=directions)
    return Method(name, answerer, chosen_on, settings, is_deployable=name == STEERED)


def _controls(
    context: RunContext, choice: SteeringConfig, basis: ControlBasis | None
) -> list[Method]:
    """The chosen controller over what should not work: of vectors, or of a basis."""
    seed = context.config.seed
    if isinstance(choice, VectorSteering):
        found = vector_controls(context, choice)
        return [_steered(context, name, choice, directions=other) for name, other in found.items()]
    if basis is None:
        return []
    return [
        _steered(context, name, choice, basis=other)
        for name, other in (
            (NULL_CONTROL, empty_basis(basis)),
            ("control-random-vectors", random_directions(basis, seed=seed)),
            ("control-shuffled-keys", shuffled_keys(basis, seed=seed)),
        )
    ]


def _baselines(context: RunContext) -> list[Method]:
    """The baselines that apply, with their tuned settings."""
    if not context.config.baselines.names:
        return []
    report = load_report(context.stage("baselines"), BaselinesReport)
    return [
        Method(
            tuned.name,
            baseline_answerer(context, load_baseline(tuned.path), tuned.chosen),
            "tune",
            baseline=tuned,
            is_yardstick=True,
        )
        for tuned in report.methods
    ]


def _students(context: RunContext) -> list[Method]:
    """The exported student and those trained beside it."""
    taught = students_taught(context.run_dir, context.config)
    if taught:
        context.stage("distill").require_complete()
    return [
        Method(student_label(name), student_answerer(context, name), "harvest", is_deployable=True)
        for name in taught
    ]


def _variants(context: RunContext, choice: SteeringConfig) -> dict[str, SteeringConfig]:
    """The chosen settings with some changed, by name; without those that the chosen mode lacks."""
    variants = {}
    for name, changes in context.config.evaluate.variants.items():
        varied = changed(choice, changes)
        if varied is None:
            context.console.print(
                f"  evaluate.variants.{name}: left out; the chosen mode {choice.mode} has no "
                f"{', '.join(sorted(changes))}"
            )
            continue
        variants[name] = varied
    return variants


def _open_test(context: RunContext) -> int:
    """Refuse test items that were used before; count the choices that the split was opened for."""
    made_before = stage_of("evaluate").sources(context.config)
    used = context.problems_used(made_before)
    return open_test_split(context, context.stage("tune").fingerprint(), used)


def _finish(
    context: RunContext,
    stage: StageDir,
    methods: Sequence[Method],
    jobs: Mapping[str, Jobs],
    openings: int,
) -> Outcome:
    answers = {name: load_answers(context, stage, asked.test) for name, asked in jobs.items()}
    _require_null_is_greedy(answers)
    rows = [compare_in_run(context, m.name, answers[m.name], answers[GREEDY]) for m in methods]
    identity, test = context.resources.described.identity, context.splits["test"]
    results = Results(
        schema=RESULTS_SCHEMA,
        model=identity.name,
        model_sha256=identity.fingerprint(),
        task=context.config.task.name,
        split=describe_test_split(context.problems, len(test), context.config.task.test_split),
        num_items=len(test),
        items_sha256=split_sha256(test),
        seeds=(context.config.seed,),
        test_openings=openings,
        methods=tuple(
            m.row(
                figures,
                fed_prompts(answers[m.name]),
                reused_tokens_mean=mean_reused(stage, [jobs[m.name].test.set_name]),
            )
            for m, figures in zip(methods, rows, strict=True)
        ),
        students=tuple(_compare_students(context, answers)),
        sampled=tuple(_compare_samples(context, stage, jobs)),
        out_of_domain=tuple(_compare_out_of_domain(context, stage, jobs)),
    )
    save_results(stage, results)
    for row in rows:
        figures = {f"{row.name}/accuracy": row.accuracy, f"{row.name}/tokens_mean": row.tokens_mean}
        context.metrics.summary("evaluate", figures)
    context.metrics.table("evaluate", "methods", [_shown(row) for row in rows])
    _show(context, answers, rows)
    named = {row.name: row for row in rows}
    greedy, steered = named[GREEDY].accuracy, named[STEERED].accuracy
    student = f", LoRA student {named[STUDENT].accuracy:.1%}" if STUDENT in named else ""
    steered_part = (
        "not steered, since tuning chose `none`"
        if abstains(context.run_dir)
        else f"steered {steered:.1%}"
    )
    return Outcome(
        {
            "accuracy_greedy": greedy,
            "accuracy_stir": steered,
            "share_reused": results.share_reused,
        },
        f"{len(test)} test problems: greedy {greedy:.1%}, {steered_part}{student}"
        f"{describe_reuse(results.share_reused)}",
    )


def _show(
    context: RunContext,
    answers: Mapping[str, list[GradedRollout]],
    rows: Sequence[MethodMetrics],
) -> None:
    """Give dashboards the headline figures, and some answers of what a user would deploy."""
    shown = [row for row in rows if row.name in (STEERED, STUDENT)]
    for row in shown:
        low, high = row.delta_accuracy_ci95
        figures = {
            "accuracy": row.accuracy,
            "delta_accuracy": row.delta_accuracy,
            "delta_accuracy_low": low,
            "delta_accuracy_high": high,
            "delta_tokens_fraction": row.delta_tokens_fraction,
        }
        named = {f"{row.name}/{key}": value for key, value in figures.items()}
        context.metrics.summary("headline", named)
    questions = {prompt.prompt_id: prompt.question for prompt in context.splits["test"]}
    some = {name: answers[name] for name in (GREEDY, *(row.name for row in shown))}
    table = sample_rows(some, questions, context.resources.described.decode)
    context.metrics.table("evaluate", "samples", table)


def _compare_students(
    context: RunContext, answers: Mapping[str, list[GradedRollout]]
) -> list[StudentComparison]:
    """Retention of every student; beside plain rejection sampling where that was trained too."""
    taught = students_taught(context.run_dir, context.config)
    if not taught:
        return []
    also = context.config.distill.also
    plain = [student_label(name) for name, other in also.items() if other.samples == "plain"]
    return compare_students(
        answers,
        [student_label(name) for name in taught],
        base=GREEDY,
        teacher=STEERED,
        other=plain[0] if plain else GREEDY,
        num_resamples=context.config.evaluate.num_bootstrap,
    )


def _compare_samples(
    context: RunContext, stage: StageDir, jobs: Mapping[str, Jobs]
) -> list[SampledMetrics]:
    """What sampling makes of the deployable methods."""
    samples = {
        name: load_answers(context, stage, asked.sampled)
        for name, asked in jobs.items()
        if asked.sampled is not None
    }
    num_resamples = context.config.evaluate.num_bootstrap
    return [
        compare_samples(name, given, samples[GREEDY], num_resamples=num_resamples)
        for name, given in samples.items()
    ]


def _compare_out_of_domain(
    context: RunContext, stage: StageDir, jobs: Mapping[str, Jobs]
) -> list[OutOfDomainResults]:
    """Per task outside the harvest, the deployable methods beside greedy decoding."""
    results = []
    for task, asked_of_greedy in jobs[GREEDY].out_of_domain.items():
        answers = {
            name: load_answers(context, stage, asked.out_of_domain[task])
            for name, asked in jobs.items()
            if task in asked.out_of_domain
        }
        rows = [compare_in_run(context, n, given, answers[GREEDY]) for n, given in answers.items()]
        prompts = asked_of_greedy.prompts
        results.append(OutOfDomainResults(task, len(prompts), split_sha256(prompts), tuple(rows)))
    return results


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


def _require_null_is_greedy(answers: Mapping[str, list[GradedRollout]]) -> None:
    """Steering with an empty basis must be plain greedy, token for token."""
    null = answers.get(NULL_CONTROL)
    if null is None:
        return
    pairs = zip(null, answers[GREEDY], strict=True)
    differing = sum(a.rollout.token_ids != b.rollout.token_ids for a, b in pairs)
    if differing:
        raise StageError(
            f"steering with an empty basis changed {differing} of {len(null)} answers; "
            "the comparison would be biased, so it stops here (please report this)"
        )
