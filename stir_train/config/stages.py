"""The settings of each stage, with the published defaults where the paper has one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, PositiveFloat, PositiveInt

from stir_train.config.backends import require_backend
from stir_train.config.base import DISTINCT, Fraction, FrozenConfig, NonNegativeFloat
from stir_train.config.baselines import BASELINES, require_baseline
from stir_train.config.import_path import is_import_path
from stir_train.config.inputs import TaskConfig
from stir_train.config.places import Place
from stir_train.config.steering import SteeringMode

ACCURACY = "accuracy"
"""The reward that comes with the package."""


class ControlPointConfig(FrozenConfig):
    """Where a trajectory may be read and steered."""

    delimiters: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("\n\n",), min_length=1
    )
    """A control point is the token that completes one of these."""
    every_tokens: PositiveInt | None = None
    """Instead of delimiters: a control point every so many completion tokens."""
    only_in_think: bool = False
    """Only between the tokens `<think>` and `</think>`, which the tokenizer must have."""
    max_points: PositiveInt = 8
    """Control points used per completion (the paper's M)."""


class GenerationConfig(FrozenConfig):
    """What decodes, and its limits."""

    backend: Annotated[str, AfterValidator(require_backend)] = "transformers"
    """What generates, one of `stir_train.config.backends.BACKENDS`."""
    max_new_tokens: PositiveInt = 256
    """Token budget of a completion; one that reaches it is marked truncated."""
    max_rows: PositiveInt = 256
    """Completions decoded side by side."""
    max_cache_tokens: PositiveInt | None = None
    """Bound of rows times their longest possible length, and so of the key-value cache."""
    chunk_completions: PositiveInt = 256
    """Completions in a chunk at most, whole prompts: the unit of resumption, which fixes its batches."""
    num_shares: PositiveInt = 1
    """Chunks, equally large, come in multiples of this, so that so many processes take as many each. Set it to the
    processes of a run that has few chunks for each."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Further settings of the backend; of `vllm`, arguments of its `EngineArgs`. `transformers` has one,
    `packed_weights`, true by default: on a CPU, keep a second copy of large layers' weights in float32 while
    decoding, in the order in which MKL multiplies by them."""

    def prompts_per_chunk(self, num_prompts: int, num_samples: int = 1) -> int:
        """Prompts in each chunk of so many, of each of which so many samples are drawn; the last may have fewer."""
        most = max(1, self.chunk_completions // num_samples)
        rounds = max(1, -(-num_prompts // (most * self.num_shares)))
        return max(1, -(-num_prompts // (rounds * self.num_shares)))


class RolloutConfig(FrozenConfig):
    """How rollouts of the harvest split are sampled and rewarded."""

    num_samples: PositiveInt = 8
    """Rollouts per prompt (the paper's N)."""
    temperature: PositiveFloat = 0.7
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus mass."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep only the k likeliest tokens; 0 keeps all."""
    length_penalty: NonNegativeFloat = 0.01
    """Reward is `1[correct] - length_penalty * num_tokens / max_new_tokens`."""


def _require_reward(name: str) -> str:
    if name != ACCURACY and not is_import_path(name):
        raise ValueError(
            f"{name!r} is neither {ACCURACY} nor an import path, as in my_module:my_reward"
        )
    return name


class RewardConfig(FrozenConfig):
    """What rollouts are worth beside the others of their problems."""

    reward: Annotated[str, AfterValidator(_require_reward)] = ACCURACY
    """What an answer is worth, before its tokens: `accuracy` (1 if it is correct, else 0), or a function of your
    own, as `package.module:function`, of a `GradedRollout`."""
    token_price: NonNegativeFloat = 0.0
    """Taken off the reward: `token_price * num_tokens / max_new_tokens`."""

    @property
    def imported(self) -> dict[str, str]:
        """A reward of the user's own."""
        return {} if self.reward == ACCURACY else {"directions.reward": self.reward}


class DirectionsConfig(RewardConfig):
    """Reward-gradient directions from the recorded rollouts, and whether they are more than noise."""

    places: Annotated[tuple[Place, ...], DISTINCT] = ()
    """Where vectors may be added; empty takes the places that tuning tries (`tune.vectors`), or those of given
    `steering.actions`. That of `every_token` is estimated from the prompt's end and the completion, since the
    rest of the prompt is the same in all samples."""
    depths: Annotated[tuple[Fraction, ...], DISTINCT] = ()
    """Depth fractions of the blocks; empty takes `harvest.depths`."""
    num_permutations: Annotated[int, Field(ge=19)] = 200
    """Shuffles of the rewards within problems, which a direction must beat."""
    significance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """A direction counts if its p-value over all blocks and places is at most this."""
    num_steps: PositiveInt = 1
    """Steps of gradient ascent: each after the first samples the harvest split again, under the vectors
    so far, and adds to them what it finds there. Steps end where that is no more than noise."""
    step_norms: dict[Place, PositiveFloat] = Field(
        default={"prompt_end": 0.3, "every_token": 0.05}, min_length=1
    )
    """Norms of the vectors that later steps sample under, as shares of the typical norm of the states."""
    filtered: bool = False
    """Differentiate the distribution that top-p and top-k leave; costs a sort of the vocabulary a token."""
    max_batch_tokens: PositiveInt = 2048
    """Tokens that go through a backward pass at a time, padding included; memory grows with them."""

    @property
    def worth(self) -> RewardConfig:
        """The reward alone."""
        return RewardConfig(reward=self.reward, token_price=self.token_price)


class HarvestConfig(FrozenConfig):
    """Contrasting right and wrong rollouts at each control point."""

    depths: Annotated[tuple[Fraction, ...], DISTINCT] = Field(default=(0.6, 0.8, 1.0), min_length=1)
    """Depth fractions of the captured blocks, of which tuning picks: `round(depth * (num_blocks - 1))`."""
    num_positive: PositiveInt = 2
    """Best-rewarded correct rollouts averaged at a point."""
    num_negative: PositiveInt = 3
    """Worst-rewarded wrong rollouts averaged at a point."""
    min_saving: Fraction | None = 0.25
    """Also contrast short with long right rollouts, where the short ones save at least this share
    of the tokens left; None contrasts right with wrong only, as published."""
    keep_truncated: bool = False
    """Let truncated rollouts count as wrong ones; the vectors then partly mean "long"."""


class BasisConfig(FrozenConfig):
    """Selecting a compact, diverse control basis."""

    directions: Literal["difference", "reward_gradient"] = "difference"
    """What an entry adds: right minus wrong mean states, as published, or the reward gradient at control
    points whose states are nearest to the entry's key."""
    size: PositiveInt = 256
    """Entries per captured block (the paper's B), corrections and anchors together."""
    diversity: NonNegativeFloat = 0.5
    """Weight of the log-determinant against quality (the paper's lambda)."""
    jitter: PositiveFloat = 1e-4
    """Added to the diagonal of the Gram matrix (the paper's eps)."""
    min_per_point: Annotated[int, Field(ge=0)] = 8
    """Entries forced in at each control point, best quality first."""
    selection: Literal["greedy", "top", "random"] = "greedy"
    """`greedy` is the method; the others are its ablations."""


class ValidationConfig(FrozenConfig):
    """Measuring each entry's uplift by paired replay on the harvest split."""

    enabled: bool = True
    """When off, every entry is kept and the value head learns from observed states alone."""
    num_rounds: PositiveInt = 3
    """After each round entries that cannot help are given up, and the worse half of the blocks."""
    trials_per_round: PositiveInt = 2000
    """Continuations per round."""
    strengths: Annotated[tuple[PositiveFloat, ...], DISTINCT] = Field(
        default=(1.0, 2.0, 3.0), min_length=1
    )
    """Strengths tried; with each harvested block an injection."""
    selection_problems: PositiveInt = 128
    """Harvest problems that every injection's controller answers between rounds."""

    def num_completions(self, num_blocks: int) -> int:
        """Continuations, and answers between rounds, over the greedy rollouts that all start from."""
        answers = 0
        for _ in range(self.num_rounds - 1):
            if num_blocks > 1:
                answers += num_blocks * len(self.strengths) * self.selection_problems
            num_blocks = (num_blocks + 1) // 2
        return self.num_rounds * self.trials_per_round + answers


class ValueConfig(FrozenConfig):
    """Training the value head on control-point states."""

    reads_below: bool = True
    """Also read the states of the harvested blocks below the head's own: they are there when it
    decides, at no pass more."""
    hidden_width: PositiveInt = 64
    """Width of the hidden layer."""
    num_members: PositiveInt = 8
    """Heads that start apart and learn from different problems; their spread is the doubt."""
    num_steps: PositiveInt = 1000
    """Optimizer steps at most."""
    batch_size: PositiveInt = 512
    """States per step."""
    learning_rate: PositiveFloat = 3e-3
    """AdamW learning rate."""
    weight_decay: NonNegativeFloat = 0.05
    """AdamW weight decay."""
    tokens_weight: NonNegativeFloat = 0.5
    """Weight of the remaining-tokens loss beside the correctness loss."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of harvest prompts held out for early stopping and calibration."""


class UtilityConfig(FrozenConfig):
    """What an answer is worth: `1[correct] - token_price * tokens / max_new_tokens`."""

    token_price: NonNegativeFloat = 0.5
    """What a whole token budget (`generation.max_new_tokens`) is worth in accuracy: entries are
    validated, impulses weighed and settings chosen by it."""


class TuneConfig(FrozenConfig):
    """A grid on the tune split, by successive halving; `none` is always one of the choices."""

    enabled: bool = True
    """When off, `steering` is used as it stands."""
    modes: Annotated[tuple[SteeringMode, ...], DISTINCT] = Field(
        default=("value", "preview", "static"), min_length=1
    )
    """Controller modes to try; the best setting of each is evaluated, the best of all deployed."""
    strengths: Annotated[tuple[PositiveFloat, ...], DISTINCT] = Field(
        default=(1.0, 2.0, 3.0), min_length=1
    )
    """Strengths to try, in the modes that have one."""
    depths: Annotated[tuple[Fraction, ...], DISTINCT] = ()
    """Depths to try; empty tries every harvested depth."""
    doubts: Annotated[tuple[NonNegativeFloat, ...], DISTINCT] = Field(
        default=(1.0, 3.0), min_length=1
    )
    """`steering.doubt` to try, in the modes that ask the value head."""
    margins: Annotated[tuple[float, ...], DISTINCT] = ()
    """`steering.margin` to try, in the same modes; empty keeps the given one."""
    candidates: Annotated[tuple[PositiveInt, ...], DISTINCT] = (4, 16)
    """`steering.num_candidates` to try, in the same modes, of twice as many nearest entries (or
    `steering.num_nearest`, if more); empty keeps the given one."""
    vectors: dict[Place, Annotated[tuple[PositiveFloat, ...], Field(min_length=1), DISTINCT]] = (
        Field(
            default={"prompt_end": (0.15, 0.3, 0.45), "every_token": (0.03, 0.06, 0.1)},
            min_length=1,
        )
    )
    """Of mode `vector`, norms to try by place, as shares of the typical norm of the states there (the
    table of stage directions has it): each alone, and of every two places together, at the block
    whose direction there gains most above chance for a norm of such a share."""
    num_halvings: Annotated[int, Field(ge=0, le=6)] = 1
    """How often the worse half of the settings is given up: once means that all answer the first half
    of the problems and the better half of them (and the best of each mode) the rest."""
    num_shortlisted: PositiveInt | None = None
    """Settings of a mode that are tried: the best by what the log of validation says they gain, and those of
    which it says too little; None tries all. Modes `value` and `similarity` have such estimates."""
    max_accuracy_loss: Fraction = 0.01
    """A setting is chosen only if the 95 % interval of its accuracy excludes a greater loss."""


class BaselinesConfig(FrozenConfig):
    """Other methods beside ours, each tuned on the same split."""

    methods: (
        Annotated[tuple[Annotated[str, AfterValidator(require_baseline)], ...], DISTINCT]
        | Literal["all"]
    ) = ()
    """Which, by shipped name or by import path (`package.module:Name`); none by default, and `all` are the
    shipped ones. Each says in its docstring what is its paper's and what our choice."""
    num_halvings: Annotated[int, Field(ge=0, le=6)] = 1
    """How often the worse half of each method's settings is given up; see `tune.num_halvings`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The methods asked for, in order: shipped names and import paths."""
        return tuple(BASELINES) if self.methods == "all" else self.methods

    @property
    def imported(self) -> dict[str, str]:
        """Methods of the user's own."""
        own = [name for name in self.names if is_import_path(name)]
        return {f"baselines.methods.{number}": path for number, path in enumerate(own)}


class OutOfDomainConfig(FrozenConfig):
    """A task that nothing of the run is made from, to see what steering or a student loses there."""

    task: TaskConfig
    """Where its problems come from and how their answers are judged."""
    num_problems: PositiveInt = 256
    """Problems answered: the first in the order of the splits' seed."""


MAX_RANDOM_VECTORS = 3


class EvaluateConfig(FrozenConfig):
    """What is compared on the test split, and with how many resamples."""

    num_bootstrap: int = Field(default=10_000, ge=100)
    """Bootstrap resamples behind every interval."""
    controls: bool = True
    """Add the controls: empty basis, norm-matched random vectors, shuffled keys."""
    num_random_vectors: int = Field(default=3, ge=1, le=MAX_RANDOM_VECTORS)
    """Where vectors are held: random ones of the same norms as controls. One alone may break a habit by luck."""
    variants: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], dict[str, Any]] = Field(
        default_factory=dict
    )
    """Ablations by name: the chosen controller with some settings of `steering` changed, on the test
    split too, as in `{no-gate: {margin: -10}}`; left out where the chosen mode has no such setting."""
    num_samples: PositiveInt | None = None
    """Also sample so many completions of each test problem, for avg@n, pass@k and majority@n of
    greedy decoding's model, the chosen controller and every student; None decodes greedily alone."""
    out_of_domain: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], OutOfDomainConfig] = Field(
        default_factory=dict
    )
    """Tasks outside the harvest by name: greedy, the chosen controller, its controls, the baselines and
    every student answer them; a task with an official test split is asked from that."""

    @property
    def imported(self) -> dict[str, str]:
        """Controllers of the user's own in variants."""
        return {
            f"evaluate.variants.{name}.controller": str(changes["controller"])
            for name, changes in self.variants.items()
            if "controller" in changes
        }


class ClusterConfig(FrozenConfig):
    """How processes work together; nothing here changes what they make."""

    lease_seconds: PositiveFloat = 60.0
    """Work of a process that has shown no sign of life for so long is taken over."""


class TrackingConfig(FrozenConfig):
    """Where metrics go besides `metrics.jsonl`."""

    wandb: Literal["disabled", "auto", "offline", "online"] = "disabled"
    """`offline` needs no account and no network; `auto` is offline inside a SLURM job, whose nodes
    often reach no network, and online elsewhere."""
    project: str = "stir-train"
    """wandb project."""
    group: str | None = None
    """wandb group; without one, the task and the model, so that seeds and variants stand together."""
    tags: tuple[str, ...] = ()
    """wandb tags besides the task, the model, the effort and the seed."""
