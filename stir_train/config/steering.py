"""The settings of the controller: one model a mode, so that a setting is there only where it acts.

To add a mode, write its controller in a module of ``stir_train/steering`` and add here its settings,
which name that controller, to `SteeringConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from stir_train.config.base import Fraction, FrozenConfig, NonNegativeFloat
from stir_train.config.import_path import is_import_path
from stir_train.config.places import Place


class SteeringSettings(FrozenConfig):
    """Base of the settings of every mode."""

    made_by: ClassVar[str]
    """Import path of what makes the controller; see `stir_train.steering.interface`."""

    @property
    def controller_path(self) -> str:
        """Import path of what makes the controller."""
        return self.made_by

    @classmethod
    def like(cls, other: SteeringSettings, changes: Mapping[str, Any] | None = None) -> Self:
        """This mode with those settings of another that both have, and some changed.

        Raises:
            pydantic.ValidationError: If this mode has no such settings, or not with such values.
        """
        shared = {name: value for name, value in vars(other).items() if name in cls.model_fields}
        return cls.model_validate({**shared, "mode": _mode_of(cls), **(changes or {})})


class OneBlockSteering(SteeringSettings):
    """Of modes that steer one block."""

    depth: Fraction | None = None
    """Depth of the steered block; None takes the first harvested depth."""


class ScaledSteering(OneBlockSteering):
    """Of modes whose impulses have a strength that tuning varies."""

    strength: PositiveFloat = 1.0
    """`k_scale` of the published rule in `similarity` and `preview` mode; the multiplier of what is
    injected in the others."""


class RetrievingSteering(ScaledSteering):
    """Of modes that choose among entries retrieved from the control basis."""

    made_by = "stir_train.steering.controller:make_basis_controller"
    max_strength: PositiveFloat = 4.0
    """Upper clip of the injected multiplier (the paper's alpha_max)."""
    num_nearest: PositiveInt = 8
    """Entries retrieved by cosine similarity (the paper's k)."""
    num_candidates: PositiveInt = 4
    """Corrections considered (the paper's L)."""
    retrieval: Literal["nearest", "random"] = "nearest"
    """`random` is an ablation: entries of the same control point, drawn without looking."""
    center_keys: bool = False
    """Subtract the mean key before cosines; raw residual cosines are all close to 1."""
    first_point_only: bool = False
    """Ablation: steer only the first control point."""
    momentum_gate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Ablation: steer only where the step that ends there stands out by this factor of uncertainty (gamma) from
    the momentum average of those before it (MUR, arXiv 2507.14958); the first step never does."""


class AffinitySteering(RetrievingSteering):
    """Of modes that score entries by similarity times quality, as published."""

    similarity_weight: NonNegativeFloat = 2.0
    """Weight of similarity times quality in the score (the paper's beta)."""
    min_score: float = 0.0
    """A correction must score above this (the paper's tau), and above the null score."""


class PreviewingSteering(RetrievingSteering):
    """Of modes that decode a few tokens under every candidate before they decide."""

    preview_weight: NonNegativeFloat = 0.1
    """Weight of the preview's gain in the score (the paper's rho)."""
    preview_tokens: PositiveInt = 4
    """Tokens decoded per preview."""
    preview_strength: PositiveFloat | None = None
    """Strength during previews; 1.0 is published, None previews what would be injected."""


class JudgedSteering(RetrievingSteering):
    """Of modes that ask the value head what an impulse would gain."""

    strength_factors: tuple[PositiveFloat, ...] = Field(default=(1.0,), min_length=1)
    """Multiples of `strength` among which the head picks."""
    margin: float = 0.005
    """Least predicted gain that is worth an impulse; far below 0 there is no gate."""
    doubt: NonNegativeFloat = 1.0
    """How many deviations between its members' gains in P(correct) are taken off a gain."""
    gate: Fraction = 1.0
    """No impulse where P(correct) is already this high; 1 trusts the predicted gain."""
    only_familiar: bool = True
    """No impulse at a state unlike those that the head learned from, as on another task."""
    max_relative_norm: PositiveFloat = 1.5
    """Bound of the impulse's norm relative to the state's (kappa)."""


class NoSteering(OneBlockSteering):
    """Never acts: the model answers as without a controller."""

    made_by = "stir_train.steering.controller:make_idle_controller"
    mode: Literal["none"] = "none"
    """Never acts."""


class StaticSteering(ScaledSteering):
    """Adds one constant vector at every control point."""

    made_by = "stir_train.steering.static:make_static_controller"
    mode: Literal["static"] = "static"
    """One constant vector at every control point."""


class SimilaritySteering(AffinitySteering):
    """Chooses by similarity of the state to the basis entries' keys alone; no pass is added."""

    mode: Literal["similarity"] = "similarity"
    """By similarity alone."""


class PreviewSteering(PreviewingSteering, AffinitySteering):
    """Chooses by similarity and previews: the published rule."""

    mode: Literal["preview"] = "preview"
    """By similarity and previews: the published rule."""


class ValueSteering(JudgedSteering):
    """Chooses by the value head, inside the pass."""

    mode: Literal["value"] = "value"
    """By the value head, at no extra pass."""


class HybridSteering(PreviewingSteering, JudgedSteering):
    """Chooses by the value head and previews."""

    mode: Literal["hybrid"] = "hybrid"
    """By the value head and previews."""


class VectorAction(FrozenConfig):
    """A direction of the run, added at a place."""

    place: Place
    """At which tokens."""
    depth: Fraction
    """Depth of the block; one of those that have directions."""
    strength: PositiveFloat
    """Norm of what is added, since directions are unit vectors."""


class VectorSteering(SteeringSettings):
    """Adds reward-gradient directions whatever the state, each at a place of its own."""

    made_by = "stir_train.steering.vector:make_vector_controllers"
    mode: Literal["vector"] = "vector"
    """By reward-gradient directions, whatever the state."""
    actions: tuple[VectorAction, ...] = Field(min_length=1)
    """What is added, all at once, as in `[{place: prompt_end, depth: 0.5, strength: 5}]`: a strength is
    the norm, since directions are unit vectors. Tuning tries `tune.vectors` too."""


class CustomSteering(ScaledSteering):
    """A controller of the user's own; see ``docs/extending.md``."""

    mode: Literal["custom"] = "custom"
    """A controller of your own."""
    controller: str
    """Its import path, as in `my_module:MyController`."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """What it is given beside the run's artifacts: any settings that it knows."""

    @field_validator("controller")
    @classmethod
    def _is_path(cls, path: str) -> str:
        if not is_import_path(path):
            raise ValueError("expected an import path, as in my_module:MyController")
        return path

    @property
    def controller_path(self) -> str:
        """Import path of the user's controller."""
        return self.controller

    @property
    def imported(self) -> dict[str, str]:
        """Import paths by the setting that names them."""
        return {"steering.controller": self.controller}


SteeringConfig = (
    NoSteering
    | StaticSteering
    | SimilaritySteering
    | PreviewSteering
    | ValueSteering
    | HybridSteering
    | VectorSteering
    | CustomSteering
)
SteeringMode = Literal[
    "none", "static", "similarity", "preview", "value", "hybrid", "vector", "custom"
]


def _mode_of(kind: type[SteeringSettings]) -> str:
    return str(get_args(kind.model_fields["mode"].annotation)[0])


MODES: dict[str, type[SteeringConfig]] = {_mode_of(kind): kind for kind in get_args(SteeringConfig)}
"""Settings by mode."""


def _with_mode(values: Any) -> Any:
    return {"mode": "value", **values} if isinstance(values, Mapping) else values


AnySteering = Annotated[
    Annotated[SteeringConfig, Field(discriminator="mode")], BeforeValidator(_with_mode)
]
"""`SteeringConfig` as the field of a model; `value` where no mode is given."""


def steering_for(
    mode: str, base: SteeringConfig, changes: Mapping[str, Any] | None = None
) -> SteeringConfig:
    """Another mode's settings: those that it shares with ``base``, some changed, else its defaults.

    Raises:
        pydantic.ValidationError: If the mode has no such settings, or not with such values.
    """
    return MODES[mode].like(base, changes)


def changed(base: SteeringConfig, changes: Mapping[str, Any]) -> SteeringConfig | None:
    """``base`` with some settings changed, ``mode`` too; None if its mode has no such settings."""
    mode = str(changes.get("mode", base.mode))
    if not set(changes) <= set(MODES[mode].model_fields):
        return None
    return steering_for(mode, base, changes)
