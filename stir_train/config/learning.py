"""The settings of what learns: distillation into adapters, and how training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from stir_train.config.base import Fraction, FrozenConfig, NonNegativeFloat
from stir_train.config.import_path import is_import_path

SHIPPED_TERMS = {
    "sequence": "stir_train.distill.terms:SequenceTerm",
    "logits": "stir_train.distill.terms:LogitsTerm",
    "states": "stir_train.distill.terms:StatesTerm",
    "policy_gradient": "stir_train.distill.terms:PolicyGradientTerm",
}
"""Import paths of distillation terms by the name that a configuration gives a weight to."""


RESERVED_STUDENTS = frozenset({"student"})
"""Names of the exported student, in results and among checkpoints."""


class ObjectiveConfig(FrozenConfig):
    """What a student learns from: a weighted sum, each part a mean over tokens or control points."""

    samples: Literal["steered", "plain", "unverified", "compared"] = "steered"
    """Completions under the chosen controller, or the run's own rollouts without one (plain
    rejection sampling); of both the right and short ones are kept. `unverified` takes the rollouts as they
    come, right or wrong (SSD, arXiv 2604.01193); `compared` all those of problems with unequal rewards, for
    `policy_gradient`."""
    sequence: NonNegativeFloat = 1.0
    """Weight of the cross-entropy of their tokens."""
    logits: NonNegativeFloat = 0.0
    """Weight of the divergence from the teacher's next-token distributions: the steered model's, or those under
    `instruction`."""
    states: NonNegativeFloat = 0.0
    """Weight of the relative squared error of the steered block's states at control points; where
    the controller did nothing, the target is the base model's own state."""
    policy_gradient: NonNegativeFloat = 0.0
    """Weight of the clipped policy gradient: `compared` samples, right ones and wrong ones, each by its advantage
    over the others of its problem, as `directions` weighs them."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of `policy_gradient`: how far a token's probability may move, relative to that at which it was sampled, before
    it counts no more (PPO, arXiv 1707.06347)."""
    beta: Fraction = 0.5
    """Of the divergence: 0 is KL(teacher, student), 1 is KL(student, teacher), between is a mixture."""
    top_k: PositiveInt | None = None
    """Tokens of the teacher that are told apart, the rest counting as one; all if none."""
    on_policy: Fraction = 0.0
    """Share of batches whose completions the student samples itself, as it is at that step. The teacher
    judges them by `logits` and `states`; their tokens are nobody's target."""
    instruction: str = ""
    """Where it is not empty, the teacher is not the steered model but the base that reads this behind the
    question, as in `Be concise.`; with `on_policy: 1` and `beta: 1` that is OPSDC (arXiv 2603.05433)."""
    module: Annotated[str, Field(pattern=r"^([a-z]\w*(\.[a-z]\w*)*)?$")] = ""
    """Where it is not empty, this module of the steered block alone gets an adapter, as in `mlp.down_proj`, and
    not `distill.targets`; with `states: 1` and `sequence: 0` that is the idea of CASAL (arXiv 2510.02324)."""

    terms: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Weights of more terms: import paths of your own, as in `{my_module:MyTerm: 0.1}`."""

    @field_validator("terms")
    @classmethod
    def _are_terms(cls, terms: dict[str, float]) -> dict[str, float]:
        for name in terms:
            if name in cls.model_fields:
                raise ValueError(f"{name} has a setting of its own, beside terms")
            if name not in SHIPPED_TERMS and not is_import_path(name):
                raise ValueError(
                    f"{name!r} is no term; expected {', '.join(SHIPPED_TERMS)}, or an import path as "
                    "in my_module:MyTerm"
                )
        return terms

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Self:
        has_teacher = bool(self.logits or self.states)
        if not self.weights:
            raise ValueError(
                "sequence, logits, states and policy_gradient are all 0: there is nothing to learn"
            )
        if self.instruction and (self.states or not (self.logits or self.terms)):
            raise ValueError(
                "a teacher under an instruction gives distributions alone: logits must be above 0, states 0"
            )
        if not self.instruction and self.samples != "steered" and has_teacher:
            raise ValueError(
                f"{self.samples} samples have no steered teacher: logits and states must be 0, or the "
                "teacher be given an instruction"
            )
        if (self.samples == "compared") != bool(self.policy_gradient):
            raise ValueError(
                "policy_gradient learns from compared samples, and they from nothing else: set samples=compared and "
                "policy_gradient above 0, or neither"
            )
        if self.samples == "compared" and (self.sequence or self.on_policy):
            raise ValueError(
                "compared samples are right and wrong ones, recorded: sequence and on_policy must be 0"
            )
        if self.on_policy and not (has_teacher or self.terms):
            raise ValueError("on_policy takes a teacher to judge: logits or states must be above 0")
        if self.module and self.samples != "steered":
            raise ValueError(
                f"module is one of the steered block, and {self.samples} samples have none: use steered ones"
            )
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the terms that have one, by name."""
        own = {
            "sequence": self.sequence,
            "logits": self.logits,
            "states": self.states,
            "policy_gradient": self.policy_gradient,
        }
        return {name: weight for name, weight in {**own, **self.terms}.items() if weight}

    @property
    def imported(self) -> dict[str, str]:
        """Terms of the user's own."""
        paths = [name for name in self.terms if is_import_path(name)]
        return {f"distill.objective.terms.{path}": path for path in paths}


class DistillConfig(FrozenConfig):
    """Distilling steered behaviour into a LoRA adapter."""

    enabled: bool = True
    """When off, the run ends with the evaluation of the steered base model."""
    rank: Literal[8, 16, 32, 64] = 16
    """LoRA rank; servers accept a few values only."""
    alpha: PositiveInt = 32
    """LoRA scale is `alpha / rank`."""
    use_rslora: bool = False
    """Scale by `alpha / sqrt(rank)` instead, which keeps updates alike over ranks."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """LoRA dropout."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    """Module names that get an adapter; the output head never does."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What the exported student learns from."""
    also: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], ObjectiveConfig] = Field(
        default_factory=dict
    )
    """More students by name, trained alike on the same number of tokens and evaluated beside it."""

    @field_validator("also")
    @classmethod
    def _have_names_of_their_own(
        cls, also: dict[str, ObjectiveConfig]
    ) -> dict[str, ObjectiveConfig]:
        if taken := sorted(also.keys() & RESERVED_STUDENTS):
            raise ValueError(
                f"{', '.join(taken)}: the exported student goes by it; use another name"
            )
        return also

    num_samples: PositiveInt = 4
    """Steered samples per harvest problem, at the rollout temperature."""
    keep_per_prompt: PositiveInt = 2
    """Correct samples kept per problem, shortest first."""
    hard_below: Fraction = 0.0
    """Of problems solved less often than this, keep one correct sample of middle length too, so that
    what is hard is not learned from its luckiest short cuts alone; 0 keeps the shortest only."""
    num_steps: PositiveInt = 300
    """Optimizer steps."""
    batch_size: PositiveInt = 16
    """Sequences per step."""
    bucket_batches: PositiveInt = 1
    """Sort sequences by length within so many batches, to pad less; 1 leaves them as shuffled."""
    patience: PositiveInt | None = None
    """Stop after so many validations without improvement, and keep the best; None trains to the end.
    Validated is the loss of right answers on the tune split, the teacher's or plain ones."""
    validate_every_steps: PositiveInt = 25
    """Steps between validations."""
    learning_rate: PositiveFloat = 2e-3
    """AdamW learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW weight decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    """Steps of linear warm-up before the cosine."""
    logit_tolerance: PositiveFloat = 1e-4
    """Largest difference allowed between the trainer's logits and the reloaded adapter's."""


class IterateConfig(FrozenConfig):
    """Generations of a run (`stir-train iterate`): each starts from the last one's merged student."""

    max_generations: PositiveInt = 3
    """Generations at most; it ends before with one whose student is no better on the tune split."""


class TrainConfig(FrozenConfig):
    """How the stages that learn (value, distill) run; their results differ by rounding only."""

    engine: Literal["auto", "plain", "deepspeed"] = "auto"
    """`auto` is DeepSpeed in a launch of several ranks and plain PyTorch alone."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed shards over ranks: 1 optimizer states, 2 gradients too, 3 weights too."""
    deepspeed_config: Path | None = None
    """A DeepSpeed JSON merged over ours; what contradicts these settings is refused by name."""
    gradient_accumulation: PositiveInt = 1
    """Parts that each rank cuts its share of a batch into, to save memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations in training; bfloat16 under DeepSpeed needs a zero_stage above 0."""
    activation_checkpointing: bool = False
    """Distillation keeps a block's input alone and computes the rest again in the backward pass: much
    less memory for a third more time, and the same gradients."""
    checkpoint_every_steps: PositiveInt = 100
    """Optimizer steps between checkpoints; a resumed fit ends with the same bytes."""

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        # DeepSpeed 0.19's bf16 without ZeRO starts Adam at the wrong step.
        if self.dtype == "bfloat16" and self.engine != "plain" and self.zero_stage == 0:
            raise ValueError("dtype bfloat16 under DeepSpeed needs zero_stage 1, 2 or 3")
        return self
