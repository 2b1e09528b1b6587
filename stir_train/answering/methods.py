"""The methods of the held-out comparison by name, and what each answers with."""

from __future__ import annotations

from dataclasses import dataclass

from stir_train.answering.interface import Answerer
from stir_train.config.steering import (
    JudgedSteering,
    NoSteering,
    PreviewSteering,
    ScaledSteering,
    SteeringConfig,
    VectorSteering,
)
from stir_train.types.results import FedPrompts, MethodMetrics, MethodRow, TunedBaseline

GREEDY, PUBLISHED, STEERED, STUDENT = "greedy", "stir-published", "stir", "lora-student"
NULL_CONTROL = "control-empty-basis"
"""Steering that has nothing to add."""


@dataclass(frozen=True)
class Method:
    """A way to answer the test problems.

    Attributes:
        name: Its row.
        answerer: What answers.
        chosen_on: Where its settings come from: a split, ``published defaults`` or ``nothing``.
        steering: A controller's settings; None for what no controller answers.
        baseline: The tuned baseline that it is; None for every other method.
        is_deployable: Whether a user would deploy it, or it is what that is compared with: it also answers
            other tasks, and is sampled.
        is_yardstick: Whether a deployed method is to be measured against it: it also answers other tasks.
    """

    name: str
    answerer: Answerer
    chosen_on: str
    steering: SteeringConfig | None = None
    baseline: TunedBaseline | None = None
    is_deployable: bool = False
    is_yardstick: bool = False

    @property
    def label(self) -> str:
        """Name and settings in short."""
        if self.baseline is not None:
            return self.baseline.label
        return self.name if self.steering is None else settings_label(self.steering)

    @property
    def answered_as(self) -> str:
        """The method whose answers are its own: greedy decoding's, of a controller that never acts."""
        return GREEDY if isinstance(self.steering, NoSteering) else self.name

    def row(
        self, metrics: MethodMetrics, prompts: FedPrompts, *, reused_tokens_mean: float
    ) -> MethodRow:
        """Its row of the results; the arguments are fields of it."""
        return MethodRow(
            metrics,
            self.label,
            self.chosen_on,
            self.steering,
            None if self.baseline is None else self.baseline.chosen,
            prompts,
            reused_tokens_mean,
        )


def student_label(name: str) -> str:
    """The row of a student; the exported one has no name."""
    return f"lora-{name}" if name else STUDENT


def published_rule() -> PreviewSteering:
    """The paper's defaults: previews at strength 1, at the first harvested depth."""
    return PreviewSteering(strength=1.0, preview_strength=1.0)


def settings_label(settings: SteeringConfig) -> str:
    """A controller's settings in short; also the directory of a trial's answers."""
    if settings.mode == "none":
        return "none"
    if isinstance(settings, VectorSteering):
        actions = (
            f"{action.place}-depth{action.depth:g}-strength{action.strength:g}"
            for action in settings.actions
        )
        return "-".join([settings.mode, *actions])
    parts: list[str] = [settings.mode]
    if settings.depth is not None:
        parts.append(f"depth{settings.depth:g}")
    if isinstance(settings, ScaledSteering):
        parts.append(f"strength{settings.strength:g}")
    if isinstance(settings, JudgedSteering):
        parts.append(f"doubt{settings.doubt:g}")
        for name, value in (
            ("margin", settings.margin),
            ("num_candidates", settings.num_candidates),
        ):
            if value != JudgedSteering.model_fields[name].default:
                parts.append(f"{name.removeprefix('num_')}{value:g}")
        if settings.momentum_gate is not None:
            parts.append(f"gamma{settings.momentum_gate:g}")
    return "-".join(parts)
