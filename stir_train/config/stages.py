"""The settings of each stage, with the published defaults where the paper has one."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from stir_train.config.base import Fraction, FrozenConfig, NonNegativeFloat
from stir_train.config.tasks import KNOWN_TASKS

SPREAD = "spread"
BaselineName = Literal[
    "self-consistency",
    "seal",
    "steered-compression",
    "fractional-reasoning",
    "representation-control",
    "efficiency-steering",
    "nowait",
    "cgrs",
    "deer",
    "progress-vector",
    "thinkedit",
    "steer2edit",
]
SteeringMode = Literal["none", "static", "similarity", "preview", "value", "hybrid"]


class ModelConfig(FrozenConfig):
    """Which causal language model, and how to hold it."""

    name: str = "embedded/addition"
    """Directory, hub id, or `embedded/NAME` for a model shipped with the package."""
    revision: str | None = None
    """Pinned hub revision (commit, tag or branch); a commit is the only one that cannot move."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    device: str = "auto"
    """`auto` is the GPU when there is one; otherwise `cpu`, `cuda:N`, or `spread`: the model's blocks
    over all GPUs of the host, then its memory, then its disk, for one process that decodes slowly."""
    max_memory: dict[str, str] = Field(default_factory=dict)
    """Under `spread`, what may be put where: `{"0": 70GiB, cpu: 200GiB}`; empty takes what is free."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation; the engine builds its own masks, which these two take."""
    blocks_path: str | None = None
    """Dotted path of the decoder blocks, for an architecture that is not recognised."""
    sharding: Literal["none", "tensor", "zero3"] = "none"
    """For a model larger than a GPU: `tensor` splits every layer over `shards` ranks that decode
    together; `zero3` spreads the weights over all ranks, which is slower and fits any model."""
    shards: PositiveInt = 1
    """Ranks that hold one copy under `tensor`; keep them within a node."""
    trust_remote_code: bool = False
    """Run the model repository's own Python code. Off unless you have read that code."""

    @model_validator(mode="after")
    def _is_shardable(self) -> Self:
        if (self.sharding == "tensor") != (self.shards > 1):
            raise ValueError(
                f"sharding {self.sharding!r} with shards {self.shards}: `tensor` needs shards of 2 "
                "or more, `none` and `zero3` take no other number than 1"
            )
        if self.device == SPREAD and self.sharding != "none":
            raise ValueError("device: spread and sharding are two ways to hold a model; take one")
        if self.max_memory and self.device != SPREAD:
            raise ValueError("max_memory is for device: spread")
        return self


class TaskConfig(FrozenConfig):
    """Where problems come from and how answers are judged."""

    name: str = "addition"
    """An embedded family, a public task that is known (`gsm8k`, `math500`, ...), or any label."""
    source: str | tuple[str, ...] | None = None
    """Hub id, or a local folder, JSONL, JSON, Parquet or CSV file; or several of them."""
    revision: str | None = None
    """Pinned hub revision of the dataset."""
    subset: str | None = None
    """Hub configuration name (`main` for GSM8K)."""
    hub_split: str = "train"
    """Which of the dataset's own splits to read (`train+test`); ours are cut by content hash."""
    question_fields: tuple[str, ...] = ("question",)
    """Columns that may hold the problem, the first present is read; `a.b` looks inside, `a+b` joins."""
    answer_fields: tuple[str, ...] = ("answer",)
    """Columns that may hold the gold answer."""
    choices_fields: tuple[str, ...] = ()
    """Columns that may hold the options of a multiple-choice problem."""
    kind_fields: tuple[str, ...] = ()
    """Columns that may hold a label, for breakdowns and stratified splits."""
    answer_format: Literal["auto", "verbatim", "after_hashes", "boxed"] = "auto"
    """Where in its column the gold answer stands; `auto` looks for `####`, then for a box."""
    template: str = "{question}"
    """Prompt template; `{question}` is replaced."""
    system_prompt: str | None = None
    """System message, when the chat template is used."""
    chat_template: bool = False
    """Render the prompt through the tokenizer's chat template."""
    grader: Literal["exact", "numeric", "choice", "boolean", "math", "regex"] = "exact"
    """How an answer is compared with the gold one."""
    answer_marker: str = "Answer:"
    """The answer follows the last occurrence of this on its line; empty: the whole completion."""
    answer_regex: str | None = None
    """For the grader `regex`: its one group, where it last matches, is the answer."""

    @model_validator(mode="before")
    @classmethod
    def _known_task_fills_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**KNOWN_TASKS.get(str(values.get("name")), {}), **values}

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if "{question}" not in self.template:
            raise ValueError("template must contain {question}")
        if self.chat_template is False and self.system_prompt is not None:
            raise ValueError("system_prompt needs chat_template: true")
        if (self.grader == "regex") != (self.answer_regex is not None):
            raise ValueError("answer_regex and grader: regex go together")
        if self.answer_regex is not None:
            try:
                groups = re.compile(self.answer_regex).groups
            except re.error as error:
                raise ValueError(f"answer_regex is no regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"answer_regex must have one group, it has {groups}")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source, in order; empty for an embedded family."""
        if self.source is None:
            return ()
        return (self.source,) if isinstance(self.source, str) else self.source


class SplitsConfig(FrozenConfig):
    """How many problems each split holds; which one a problem is in depends on its content."""

    num_harvest: PositiveInt = 256
    """Problems for rollouts, the basis, the value head and distillation."""
    num_tune: PositiveInt = 128
    """Problems for choosing settings."""
    num_test: PositiveInt = 512
    """Problems for the final figures, opened only by `evaluate`."""
    seed: int = 0
    """Another seed cuts the splits elsewhere."""
    stratify: bool = False
    """Give every split the same share of each kind of problem."""


class ControlPointConfig(FrozenConfig):
    """Where a trajectory may be read and steered."""

    delimiters: tuple[Annotated[str, Field(min_length=1)], ...] = ("\n\n",)
    """A control point is the token that completes one of these."""
    every_tokens: PositiveInt | None = None
    """Instead of delimiters: a control point every so many completion tokens."""
    only_in_think: bool = False
    """Only between the tokens `<think>` and `</think>`, which the tokenizer must have."""
    max_points: PositiveInt = 8
    """Control points used per completion (the paper's M)."""


class GenerationConfig(FrozenConfig):
    """Limits of the decoding engine."""

    max_new_tokens: PositiveInt = 256
    """Token budget of a completion; one that reaches it is marked truncated."""
    max_rows: PositiveInt = 256
    """Completions decoded side by side."""
    max_cache_tokens: PositiveInt | None = None
    """Bound of rows times their longest possible length, and so of the key-value cache."""
    chunk_completions: PositiveInt = 256
    """Completions in a chunk, whole prompts: the unit of resumption, which fixes its batches."""


class RolloutConfig(FrozenConfig):
    """Sampling for the harvest."""

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


class HarvestConfig(FrozenConfig):
    """Contrasting right and wrong rollouts at each control point."""

    depths: tuple[Fraction, ...] = (0.6,)
    """Depth fractions of the captured blocks: `round(depth * (num_blocks - 1))`."""
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
    """After each round entries that cannot help are given up, and half of the arms."""
    trials_per_round: PositiveInt = 2000
    """Continuations per round."""
    strengths: tuple[PositiveFloat, ...] = (1.0, 2.0, 3.0)
    """Strengths tried; with each harvested block an arm."""


class ValueConfig(FrozenConfig):
    """Training the value head on control-point states."""

    hidden_width: PositiveInt = 64
    """Width of the hidden layer."""
    num_members: PositiveInt = 4
    """Independently initialised heads; their spread is the doubt."""
    num_steps: PositiveInt = 400
    """Optimizer steps at most."""
    batch_size: PositiveInt = 512
    """States per step."""
    learning_rate: PositiveFloat = 3e-3
    """AdamW learning rate."""
    weight_decay: NonNegativeFloat = 0.05
    """AdamW weight decay."""
    tokens_weight: NonNegativeFloat = 0.1
    """Weight of the remaining-tokens loss beside the correctness loss."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of harvest prompts held out for early stopping and calibration."""


class SteeringConfig(FrozenConfig):
    """What the controller does at a control point."""

    mode: SteeringMode = "value"
    """`none`, `static` (one constant vector), `similarity`, `preview` (published), `value` (no extra
    pass) or `hybrid`."""
    depth: Fraction | None = None
    """Depth of the steered block; None takes the first harvested depth."""
    strength: PositiveFloat = 1.0
    """`k_scale` of the published rule; the injected multiplier in `value` mode."""
    max_strength: PositiveFloat = 4.0
    """Upper clip of the injected multiplier (the paper's alpha_max)."""
    similarity_weight: NonNegativeFloat = 2.0
    """Weight of similarity times quality in the score (the paper's beta)."""
    preview_weight: NonNegativeFloat = 0.1
    """Weight of the preview's gain in the score (the paper's rho)."""
    num_nearest: PositiveInt = 8
    """Entries retrieved by cosine similarity (the paper's k)."""
    num_candidates: PositiveInt = 4
    """Corrections considered (the paper's L)."""
    preview_tokens: PositiveInt = 4
    """Tokens decoded per preview."""
    preview_strength: PositiveFloat | None = None
    """Strength during previews; 1.0 is published, None previews what would be injected."""
    min_score: float = 0.0
    """A correction must score above this (the paper's tau), and above the null score."""
    retrieval: Literal["nearest", "random"] = "nearest"
    """`random` is an ablation: entries of the same control point, drawn without looking."""
    center_keys: bool = False
    """Subtract the mean key before cosines; raw residual cosines are all close to 1."""
    token_price: NonNegativeFloat = 0.5
    """What a whole token budget is worth in accuracy: entries are validated, impulses weighed and
    settings chosen by `P(correct) - token_price * tokens / max_new_tokens`."""
    strength_factors: tuple[PositiveFloat, ...] = (1.0,)
    """`value`: multiples of `strength` among which the head picks."""
    value_margin: NonNegativeFloat = 0.02
    """`value`: least predicted gain that is worth an impulse."""
    value_gate: Fraction = 1.0
    """`value`: no impulse where P(correct) is already this high; 1 trusts the predicted gain."""
    max_relative_norm: PositiveFloat = 1.5
    """`value`: bound of the impulse's norm relative to the state's (kappa)."""
    first_point_only: bool = False
    """Ablation: steer only the first control point."""


class TuneConfig(FrozenConfig):
    """A grid on the tune split; `none` is always one of the choices."""

    enabled: bool = True
    """When off, `steering` is used as it stands."""
    modes: tuple[SteeringMode, ...] = ("value", "preview", "static")
    """Controller modes to try; the best setting of each is evaluated, the best of all deployed."""
    strengths: tuple[PositiveFloat, ...] = (1.0, 2.0, 3.0)
    """Strengths to try."""
    depths: tuple[Fraction, ...] = ()
    """Depths to try; empty tries every harvested depth."""


class BaselinesConfig(FrozenConfig):
    """Other methods beside ours, each tuned on the same split."""

    methods: tuple[BaselineName, ...] | Literal["all"] = ()
    """Which; none by default. Each says in its docstring what is its paper's and what our choice."""

    @property
    def names(self) -> tuple[BaselineName, ...]:
        """The methods asked for, in order."""
        return get_args(BaselineName) if self.methods == "all" else self.methods


class OutsideConfig(FrozenConfig):
    """A task that nothing of the run is made from, to see what steering or a student loses there."""

    task: TaskConfig
    """Where its problems come from and how their answers are judged."""
    num_problems: PositiveInt = 256
    """Problems answered: the first in the order of the splits' seed."""


class EvaluateConfig(FrozenConfig):
    """The held-out comparison."""

    num_bootstrap: PositiveInt = 10_000
    """Bootstrap resamples behind every interval."""
    controls: bool = True
    """Add the controls: empty basis, norm-matched random vectors, shuffled keys."""
    num_samples: PositiveInt | None = None
    """Also sample so many completions of each test problem, for avg@n, pass@k and majority@n of
    greedy decoding's model, the chosen controller and every student; None decodes greedily alone."""
    outside: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], OutsideConfig] = Field(
        default_factory=dict
    )
    """Tasks outside the harvest by name; greedy, the chosen controller and every student answer them."""


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
