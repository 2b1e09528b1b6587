"""Every method on the same held-out items, with intervals; the test split is opened only here."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.config.stages import SteeringConfig
from stir_train.data.prompts import require_unseen, split_sha256
from stir_train.errors import StageError
from stir_train.evals.compare import describe_interval
from stir_train.evals.metrics import MethodMetrics, compare_to_baseline
from stir_train.evals.retention import StudentComparison, compare_students
from stir_train.export.adapter import ADAPTER_DIRECTORY, save_merged
from stir_train.generation.engine import DecodeEngine
from stir_train.models.load import LoadedModel, load_model, unsharded
from stir_train.models.lora import load_adapter
from stir_train.monitoring.console import progress
from stir_train.recipes.baselines import (
    BASELINES_STAGE,
    TunedBaseline,
    answering,
    tuned_baselines,
)
from stir_train.recipes.compare import RESULTS_FILE
from stir_train.recipes.context import RunContext
from stir_train.recipes.distill import ADAPTER
from stir_train.recipes.harvest import BASIS, load_basis
from stir_train.recipes.lessons import student_prefix
from stir_train.recipes.rollouts import (
    GenerationJob,
    generate_jobs,
    load_answers,
    sampling_params,
)
from stir_train.recipes.tune import (
    TUNE,
    best_of_each_mode,
    controller_for,
    price_per_token,
    trial_name,
)
from stir_train.recipes.validate import VALIDATE
from stir_train.recipes.value import VALUE
from stir_train.steering.artifacts import SteeringController
from stir_train.steering.controls import empty_basis, random_directions, shuffled_keys
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import ControlBasis

EVAL = STAGE_DIRECTORIES["evaluate"]
RESULTS_SCHEMA = 3
GREEDY, PUBLISHED, STEERED_METHOD, STUDENT = "greedy", "stir-published", "stir", "lora-student"


@dataclass(frozen=True)
class Method:
    """A way to answer the test items.

    Attributes:
        name: Row label, also the directory of its answers.
        settings: What it was run with.
        chosen_on: Which split its settings were chosen on.
        make_controller: None decodes plainly.
        engine: Makes what answers; None uses the base model.
        baseline: Another method with its setting, which answers in its own way.
    """

    name: str
    settings: SteeringConfig | None
    chosen_on: str
    make_controller: Callable[[], SteeringController] | None = None
    engine: Callable[[], DecodeEngine] | None = None
    baseline: TunedBaseline | None = None

    @property
    def described(self) -> dict[str, object] | None:
        """The settings, JSON-ready."""
        if self.baseline is not None:
            return dict(self.baseline.setting)
        return None if self.settings is None else self.settings.model_dump(mode="json")

    @property
    def label(self) -> str:
        """Name and settings in short."""
        if self.baseline is not None:
            return self.baseline.label
        return self.name if self.settings is None else trial_name(self.settings)


def run_evaluate(context: RunContext) -> None:
    """Answer the test split with every method and compare with greedy decoding."""
    config = context.config
    settings = {
        "evaluate": config.evaluate,
        "generation": config.generation,
        "seed": config.seed,
        "num_threads": config.num_threads,
    }
    upstream = (
        *(BASIS, VALIDATE, VALUE, TUNE),
        *([ADAPTER] if config.distill.enabled else []),
        *([BASELINES_STAGE] if config.baselines.names else []),
    )
    stage = context.begin(EVAL, settings, upstream=upstream, splits=("test",))
    if stage is None:
        return
    openings = int(context.world.on_main("open the test split", lambda: _open_test(context)))
    methods = build_methods(context)
    if config.distill.enabled and config.model.sharding != "none":
        context.world.on_main("merge the students", lambda: _merge_students(context))
    jobs = {
        method.name: GenerationJob(
            prompts=context.splits["test"],
            num_samples=1,
            sampling=sampling_params(context, greedy=True),
            make_controller=method.make_controller,
            prefix=f"{method.name}/",
            engine=method.engine,
            answer=None
            if method.baseline is None
            else answering(context, method.baseline.name, method.baseline.setting),
        )
        for method in methods
    }
    total = len(context.splits["test"]) * len(methods)
    with progress(context.console, "evaluate", total, "problems") as advance:
        generate_jobs(context, stage, list(jobs.values()), advance)
    context.world.on_main("evaluated", lambda: _finish(context, stage, methods, jobs, openings))


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
    made_before = [name for name in STAGE_DIRECTORIES.values() if name != EVAL]
    require_unseen(context.splits["test"], context.problems_used(made_before))
    openings = context.run_dir.record_opening(context.stage(TUNE).fingerprint())
    if openings > 1:
        context.console.print(
            f"[yellow]! evaluate: the test split is opened for choice number {openings} of this run "
            "directory; its intervals are honest for the first alone[/]"
        )
    return openings


def _finish(
    context: RunContext,
    stage: StageDir,
    methods: list[Method],
    jobs: dict[str, GenerationJob],
    openings: int,
) -> None:
    answers = {name: load_answers(context, stage, job) for name, job in jobs.items()}
    _require_null_is_greedy(answers)
    rows = [
        compare_to_baseline(
            method.name,
            answers[method.name],
            answers[GREEDY],
            num_resamples=context.config.evaluate.num_bootstrap,
            price_per_token=price_per_token(context),
        )
        for method in methods
    ]
    results = _results(context, methods, rows, openings)
    results["students"] = [student.as_dict() for student in _compare_students(context, answers)]
    with stage.writing(RESULTS_FILE) as path:
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for row in rows:
        context.metrics.log(
            EVAL,
            {f"{row.name}/accuracy": row.accuracy, f"{row.name}/tokens_mean": row.tokens_mean},
        )
    context.metrics.table(EVAL, "methods", [_shown(row) for row in rows])
    named = {row.name: row for row in rows}
    steered = named[STEERED_METHOD]
    student = f", LoRA student {named[STUDENT].accuracy:.1%}" if STUDENT in named else ""
    context.report_done(
        stage,
        {"accuracy_greedy": named[GREEDY].accuracy, "accuracy_stir": steered.accuracy},
        f"{len(context.splits['test'])} test problems: greedy {named[GREEDY].accuracy:.1%}, "
        f"steered {steered.accuracy:.1%}{student}",
    )


def build_methods(context: RunContext) -> list[Method]:
    """Greedy, the published rule, the tuned controller, its controls, and the LoRA student."""
    basis, choice = context.steering.basis(), context.steering.choice()
    selected = load_basis(context)
    published = selected.select(~selected.saves_tokens)

    def steered(name: str, settings: SteeringConfig, used: ControlBasis, chosen: str) -> Method:
        return Method(name, settings, chosen, lambda: controller_for(context, settings, used))

    methods = [
        Method(GREEDY, None, "nothing"),
        steered(PUBLISHED, published_rule(), published, "published defaults"),
        steered(STEERED_METHOD, choice, basis, "tune"),
    ]
    if context.config.evaluate.controls:
        seed = context.config.seed
        methods += [
            steered("control-empty-basis", choice, empty_basis(basis), "tune"),
            steered("control-random-vectors", choice, random_directions(basis, seed=seed), "tune"),
            steered("control-shuffled-keys", choice, shuffled_keys(basis, seed=seed), "tune"),
        ]
    methods += [
        steered(f"stir-{settings.mode}", settings, basis, "tune")
        for settings in best_of_each_mode(context)
        if settings != choice
    ]
    methods += [
        Method(other.name, None, "tune", baseline=other) for other in tuned_baselines(context)
    ]
    if not context.config.distill.enabled:
        return methods
    adapter = context.stage(ADAPTER)
    adapter.require_complete()
    students = {STUDENT: ""} | {f"lora-{name}": name for name in context.config.distill.also}
    return [
        *methods,
        *(
            Method(label, None, "harvest", engine=partial(student_engine, context, name))
            for label, name in students.items()
        ),
    ]


def student_engine(context: RunContext, name: str = "") -> DecodeEngine:
    """The engine over a distilled student, loaded when a chunk first needs it."""
    if name not in context.students:
        context.students.clear()  # one more model at a time
        context.students[name] = context.make_engine(_load_student(context, name))
    return context.students[name]


def _load_student(context: RunContext, name: str) -> LoadedModel:
    """The base with the adapter on it; of a sharded model its merged weights, sharded the same way."""
    model = context.config.model
    if model.sharding == "none":
        return load_adapter(load_model(model, context.world), _adapter_of(context, name))
    merged = str(_merged_student(context, name))
    return load_model(model.model_copy(update={"name": merged, "revision": None}), context.world)


def _adapter_of(context: RunContext, name: str) -> Path:
    return context.stage(ADAPTER).path / student_prefix(name) / ADAPTER_DIRECTORY


def _merged_student(context: RunContext, name: str) -> Path:
    return context.run_dir.scratch(EVAL) / f"merged-{name}"


def _merge_students(context: RunContext) -> None:
    """Fold each adapter into its base, once, in this process's own memory."""
    for name in ("", *context.config.distill.also):
        target = _merged_student(context, name)
        if target.is_dir():
            continue
        unfinished = target.with_name(f"{target.name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        base = load_model(unsharded(context.config.model))
        save_merged(base, _adapter_of(context, name), unfinished)
        unfinished.rename(target)


def published_rule() -> SteeringConfig:
    """The paper's defaults: previews at strength 1, at the first harvested depth."""
    return SteeringConfig(mode="preview", strength=1.0, preview_strength=1.0)


def results_table(results: dict[str, object]) -> Table:
    """The results as a terminal table."""
    title = f"{results['num_items']} held-out problems of {results['task']}; intervals are 95 %"
    table = Table(title=title, box=SIMPLE, padding=(0, 1))
    for column in (
        "method",
        "accuracy",
        "points gained",
        "tokens",
        "tokens, %",
        "passes",
        "verdict",
    ):
        left = column in ("method", "verdict")
        table.add_column(column, justify="left" if left else "right", no_wrap=column == "method")
    methods = results["methods"]
    assert isinstance(methods, list)
    for row in methods:
        style = "bold" if row["name"] in (STEERED_METHOD, STUDENT) else ""
        figures = (
            f"{row['accuracy']:.1%}",
            _change(row["delta_accuracy"], row["delta_accuracy_ci95"]),
            f"{row['tokens_mean']:.1f}",
            _change(row["delta_tokens_fraction"], row["delta_tokens_ci95"]),
            f"{row['forward_passes_mean']:.1f}",
            describe_interval(*row["delta_accuracy_ci95"]),
        )
        if row["name"] == GREEDY:
            figures = (figures[0], "", figures[2], "", figures[4], "")
        table.add_row(row["name"], *figures, style=style)
    return table


def students_table(results: dict[str, object]) -> Table | None:
    """What students keep of their teacher's gains; None if there are none to compare."""
    students = results["students"]
    assert isinstance(students, list)
    if not students:
        return None
    table = Table(title="students", box=SIMPLE, padding=(0, 1))
    table.add_column("student", no_wrap=True)
    other = students[0]["other"]
    for column in (
        "accuracy kept",
        "saving kept",
        f"points over {other}",
        f"tokens, %, over {other}",
    ):
        table.add_column(column, justify="right")
    for row in students:
        kept = [
            "no gain to keep" if value is None else f"{value:.0%}"
            for value in (row["retention_accuracy"], row["retention_tokens"])
        ]
        table.add_row(
            row["name"],
            *kept,
            _change(row["delta_accuracy"], row["delta_accuracy_ci95"]),
            _change(row["delta_tokens_fraction"], row["delta_tokens_ci95"]),
        )
    return table


def _change(value: float, interval: list[float]) -> str:
    low, high = interval
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def load_results(context: RunContext) -> dict[str, object]:
    """The results of a finished evaluation."""
    path = context.stage(EVAL).file(RESULTS_FILE)
    return dict(json.loads(path.read_text(encoding="utf-8")))


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
        "model": context.loaded.identity.as_dict(),
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
