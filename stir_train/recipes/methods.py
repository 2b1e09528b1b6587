"""The methods of the held-out comparison: what each answers with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stir_train.config.steering import PreviewSteering, SteeringConfig, changed
from stir_train.export.adapter import ADAPTER_DIRECTORY, save_merged
from stir_train.generation.backend import GenerationBackend
from stir_train.generation.controller import Controller
from stir_train.models.load import LoadedModel, load_model, unsharded
from stir_train.models.lora import load_adapter
from stir_train.recipes.baselines import TunedBaseline, tuned_baselines
from stir_train.recipes.student_plan import student_prefix
from stir_train.recipes.tune import best_of_each_mode, controller_for, trial_name
from stir_train.runtime.context import RunContext
from stir_train.steering.controls import empty_basis, random_directions, shuffled_keys
from stir_train.stores.steering import load_basis
from stir_train.types.steering import ControlBasis

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
    make_controller: Callable[[], Controller] | None = None
    engine: Callable[[], GenerationBackend] | None = None
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


def build_methods(context: RunContext) -> list[Method]:
    """Greedy, the published rule, the tuned controller, its controls, and the LoRA student."""
    basis, choice = context.steering.basis(), context.steering.choice()
    selected, _ = load_basis(context.stage("basis"))
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
        steered(f"variant-{name}", varied, basis, "tune, then changed")
        for name, varied in _variants(context, choice).items()
    ]
    methods += [
        Method(other.name, None, "tune", baseline=other) for other in tuned_baselines(context)
    ]
    if not context.config.distill.enabled:
        return methods
    adapter = context.stage("distill")
    adapter.require_complete()
    students = {STUDENT: ""} | {f"lora-{name}": name for name in context.config.distill.also}
    return [
        *methods,
        *(
            Method(label, None, "harvest", engine=partial(student_engine, context, name))
            for label, name in students.items()
        ),
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


def published_rule() -> PreviewSteering:
    """The paper's defaults: previews at strength 1, at the first harvested depth."""
    return PreviewSteering(strength=1.0, preview_strength=1.0)


def student_engine(context: RunContext, name: str = "") -> GenerationBackend:
    """The engine over a distilled student, loaded when a chunk first needs it."""
    if name not in context.resources.students:
        context.resources.students.clear()  # one more model at a time
        context.resources.students[name] = context.resources.make_engine(
            _load_student(context, name)
        )
    return context.resources.students[name]


def _load_student(context: RunContext, name: str) -> LoadedModel:
    """The base with the adapter on it; of a sharded model its merged weights, sharded the same way."""
    model = context.config.model
    if model.sharding == "none":
        return load_adapter(load_model(model, context.world), _adapter_of(context, name))
    merged = str(_merged_student(context, name))
    return load_model(model.model_copy(update={"name": merged, "revision": None}), context.world)


def _adapter_of(context: RunContext, name: str) -> Path:
    return context.stage("distill").path / student_prefix(name) / ADAPTER_DIRECTORY


def _merged_student(context: RunContext, name: str) -> Path:
    return context.run_dir.scratch("evaluate") / f"merged-{name}"


def merge_students(context: RunContext) -> None:
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
