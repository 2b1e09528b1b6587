"""What a run is made from: the model, the problems, and how they are split."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, field_validator, model_validator

from stir_train.config.base import FrozenConfig, NonEmptyText
from stir_train.config.import_path import is_import_path
from stir_train.config.tasks import REASONING_GYM, known_settings

SPREAD = "spread"
FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
"""Of a source that is one file, and so has no splits of its own."""
SplitName = Literal["harvest", "tune", "test"]
"""`harvest` is learned from, `tune` chosen on, `test` answered once."""
GRADERS = ("exact", "numeric", "choice", "boolean", "math", "regex")
RESERVED_CHAT_ARGUMENTS = frozenset(
    [
        "conversation",
        "messages",
        "chat_template",
        "tools",
        "documents",
        "add_generation_prompt",
        "tokenize",
        "padding",
        "continue_final_message",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "strftime_now",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    ]
)
BOX_MARKER = "\\boxed{}"
"""As `task.answer_marker`: the answer stands in a box."""


DEVICES = r"^(auto|spread|cpu|mps|(cuda|xpu|npu|hpu)(:[0-9]{1,3})?)$"
"""Names of devices that can hold a model."""


class ModelConfig(FrozenConfig):
    """Which causal language model, and how to hold it."""

    name: NonEmptyText = "embedded/addition"
    """Directory, hub id, or `embedded/NAME` for a model shipped with the package."""
    gguf_file: str | None = None
    """A GGUF file in that directory or repository, loaded dequantised; a path in `name` may also end in it."""
    revision: str | None = None
    """Pinned hub revision (commit, tag or branch); a commit is the only one that cannot move."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    device: Annotated[str, Field(pattern=DEVICES)] = "auto"
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
    """An embedded family, a public task that is known (`gsm8k`, `math500`, ...), `reasoning-gym:NAME`
    for problems that the package reasoning-gym generates, or any label."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """Of a `reasoning-gym:NAME` source: its generator's parameters, with `size` (problems made, 4000) and
    `seed` (0) among them."""
    source: NonEmptyText | Annotated[tuple[NonEmptyText, ...], Field(min_length=1)] | None = None
    """Hub id, or a local folder, JSONL, JSON, Parquet or CSV file; `reasoning-gym:NAME`; a function of
    your own, as `package.module:function`; or several of them."""
    revision: str | None = None
    """Pinned hub revision of the dataset."""
    subset: str | None = None
    """Hub configuration name (`main` for GSM8K)."""
    hub_split: str = "train"
    """Which of the dataset's own splits to read (`train+test`); ours are cut by content hash."""
    test_split: str | None = None
    """The dataset's own split that our test split is the first problems of, by hash; then `hub_split` is
    harvested and tuned on alone. Known tasks that have one set it, unless `hub_split` or a file is given."""
    question_fields: tuple[NonEmptyText, ...] = Field(default=("question",), min_length=1)
    """Columns that may hold the problem, the first present is read; `a.b` looks inside, `a+b` joins."""
    answer_fields: tuple[NonEmptyText, ...] = Field(default=("answer",), min_length=1)
    """Columns that may hold the gold answer."""
    choices_fields: tuple[str, ...] = ()
    """Columns that may hold the options of a multiple-choice problem."""
    kind_fields: tuple[str, ...] = ()
    """Columns that may hold a label, for breakdowns and stratified splits."""
    answer_format: Literal["auto", "verbatim", "after_hashes", "boxed", "before_unit"] = "auto"
    """Where in its column the gold answer stands; `auto` looks for `####`, then for a box; `before_unit`: before a
    unit in brackets, as in `9 (apples)`."""
    only_answers: str | None = None
    """A regular expression: rows whose gold answer it does not match from end to end are left out, and counted by
    `stir-train data`. Other rows that cannot be used stop the run."""
    template: str = "{question}"
    """Prompt template; `{question}` is replaced."""
    system_prompt: str | None = None
    """System message, when the chat template is used."""
    chat_template: bool | None = None
    """Render the prompt through the tokenizer's chat template; unset: if it has one."""
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Arguments of the chat template (`enable_thinking: false`); it must know each of them."""
    prompt_date: date | None = None
    """The date that a chat template is to write which asks for today's; it must be set for such a one."""
    grader: str = "exact"
    """How an answer is compared with the gold one: `exact`, `numeric`, `choice`, `boolean`, `math`,
    `regex`, or a function or class of your own, as `package.module:Name`."""
    answer_marker: str = "Answer:"
    """The answer follows the last of these that something follows; empty: the whole completion;
    `\\boxed{}`: it stands in a box."""
    answer_reading: Literal["lenient", "marker"] = "lenient"
    """`lenient` also reads `####`, boxes, "the answer is", and an answer at the end (the last number of a
    numeric task); `marker` reads only what is marked. `exact` and `regex` are strict either way."""
    answer_regex: str | None = None
    """For the grader `regex`: its one group, where it last matches, is the answer."""

    @field_validator("only_answers")
    @classmethod
    def _is_regular_expression(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"no regular expression: {error}") from error
        return pattern

    @model_validator(mode="before")
    @classmethod
    def _known_task_fills_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = str(values.get("name"))
        own = {"source": name} if is_import_path(name) else {}
        known = dict(known_settings(name) or own)
        if "hub_split" in values or not _has_splits(values.get("source", known.get("source"))):
            known.pop("test_split", None)
        return {**known, **values}

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if "{question}" not in self.template:
            raise ValueError("template must contain {question}")
        if self.parameters and not any(s.startswith(REASONING_GYM) for s in self.sources):
            raise ValueError(f"parameters are for a source that is {REASONING_GYM}NAME")
        if self.chat_template is False and self.system_prompt is not None:
            raise ValueError("system_prompt needs the chat template, which is off")
        reserved = sorted(RESERVED_CHAT_ARGUMENTS & set(self.chat_template_kwargs))
        if reserved:
            raise ValueError(f"chat_template_kwargs: {', '.join(reserved)} cannot be set here")
        if self.grader not in GRADERS and not is_import_path(self.grader):
            raise ValueError(
                f"grader is none of {', '.join(GRADERS)}, and no package.module:Name: {self.grader!r}"
            )
        if (self.grader == "regex") != (self.answer_regex is not None):
            raise ValueError("answer_regex and grader: regex go together")
        if self.answer_regex is not None:
            try:
                groups = re.compile(self.answer_regex).groups
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"answer_regex is no regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"answer_regex must have one group, it has {groups}")
        return self

    @model_validator(mode="after")
    def _tests_apart(self) -> Self:
        if self.test_split is None:
            return self
        if not _has_splits(self.source):
            raise ValueError(
                "test_split is for a source with splits of its own: a hub id or a folder"
            )
        if self.test_split in self.hub_split.split("+"):
            raise ValueError(f"hub_split and test_split both take {self.test_split}")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source, in order; empty for an embedded family."""
        if self.source is None:
            return ()
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def imported(self) -> dict[str, str]:
        """Import paths of a grader and a loader of the user's own, by setting."""
        named = [("task.grader", self.grader), *(("task.source", path) for path in self.sources)]
        return {setting: path for setting, path in named if is_import_path(path)}


def _has_splits(source: Any) -> bool:
    """Whether every source is a hub id or a folder, by its name."""
    named = [source] if isinstance(source, str) else source
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        return False
    return not any(
        name.startswith(REASONING_GYM)
        or is_import_path(name)
        or name.lower().endswith(FILE_SUFFIXES)
        for name in named
    )


class SplitsConfig(FrozenConfig):
    """How many problems each split holds; which one a problem is in depends on its content."""

    num_harvest: PositiveInt = 256
    """Problems for rollouts, the basis, the value head and distillation."""
    num_tune: PositiveInt = 128
    """Problems for choosing settings."""
    num_test: PositiveInt = 512
    """Problems for the final figures, opened only by `evaluate`."""
    seed: NonNegativeInt = 0
    """Another seed cuts the splits elsewhere."""
    stratify: bool = False
    """Give every split the same share of each kind of problem."""
