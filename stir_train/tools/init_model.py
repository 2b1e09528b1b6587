"""What `stir-train init` finds out about a model on this machine: format, chat, limits, speed, memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import torch

from stir_train.config.commented import Decision
from stir_train.config.effort import Effort
from stir_train.config.inputs import ModelConfig, TaskConfig
from stir_train.config.pretrained import EMBEDDED_PREFIX, PRETRAINED
from stir_train.data.chat import chat_lines, describe_chat, uses_chat_template
from stir_train.distributed.launch import START
from stir_train.errors import DataError
from stir_train.launch.estimate import GIB, ModelShape, shape_of
from stir_train.models.arithmetic import product_seconds
from stir_train.models.describe import ModelDescription, decoder_config, describe_model
from stir_train.models.load import resolve_device
from stir_train.models.locate import GGUF_SUFFIX
from stir_train.tools.init_machine import Machine, share_out

ANSWER_TOKENS = {"choice": 512, "boolean": 512, "numeric": 512, "math": 2048}
OTHER_ANSWER_TOKENS, THINKING_TOKENS, PROMPT_TOKENS = 512, 16_384, 512
"""Budgets of a completion by grader, of one that begins with thinking, and what a prompt may take."""
CACHE_SHARE = 0.35
"""Of memory, what the key-value cache and the logits of a step may take."""
MAX_ROWS, MAX_CPU_ROWS, MIN_ROWS = 256, 160, 4
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class ModelFacts:
    """A model as it was found.

    Attributes:
        config: Its settings.
        described: What its files say.
        shape: Its sizes.
        device: Where it will run.
        machine: What each process of a run gets.
    """

    config: ModelConfig
    described: ModelDescription
    shape: ModelShape
    device: torch.device
    machine: Machine

    @property
    def is_embedded(self) -> bool:
        """Whether it is one of the small ones that come with the package."""
        return self.config.name.startswith(EMBEDDED_PREFIX)


def read_model(name: str) -> ModelFacts:
    """Find out what a model is; its weights are not loaded.

    Raises:
        ModelError: If it cannot be found or read.
    """
    config, device = ModelConfig(name=name), resolve_device("auto")
    described = describe_model(config)
    wide = device.type == "cpu"
    shape = shape_of(decoder_config(config), bytes_per_weight=4 if wide else 2)
    machine = share_out(device, shape, is_embedded=name.startswith(EMBEDDED_PREFIX))
    return ModelFacts(config, described, shape, device, machine)


def effort_decision(facts: ModelFacts, asked: Effort | None) -> Decision:
    """How much a first run spends."""
    if asked is not None:
        return Decision("effort", asked, "As you asked.")
    if facts.is_embedded:
        return Decision("effort", "standard", "The model is small: minutes on a CPU.")
    if facts.device.type != "cpu":
        return Decision("effort", "standard", "There is a GPU.")
    return Decision(
        "effort",
        "quick",
        "A first look, since there is no GPU; `standard` and `thorough` spend more. It sets the sizes of "
        "everything: `stir-train settings --of FILE` shows them.",
    )


def model_decisions(facts: ModelFacts) -> Iterator[Decision]:
    """Section `model`, and the threads."""
    yield _num_threads(facts)
    name = facts.config.name
    described = facts.described
    size = f"{_count(facts.shape.num_params)} weights" if not facts.is_embedded else ""
    what = "A GGUF file, loaded dequantised" if name.endswith(GGUF_SUFFIX) else "As you named it"
    sizes = f"{described.identity.num_blocks} blocks of width {described.identity.width}"
    yield Decision("model.name", name, f"{what}: {', '.join(p for p in (size, sizes) if p)}.")
    yield _dtype(facts)


def _count(number: int) -> str:
    return f"{number / 1e6:,.0f} million" if number >= 10**6 else f"{number:,}"


def _num_threads(facts: ModelFacts) -> Decision:
    machine = facts.machine
    if facts.device.type != "cpu":
        reason = "CPU threads: the GPU does the work. Fixed, so that results repeat."
    elif machine.num_processes == 1:
        reason = (
            "CPU threads: every core there is. Results repeat to the bit for a fixed number only."
        )
    else:
        reason = (
            f"CPU threads of each of {machine.num_processes} processes, which are faster than one process of "
            f"{machine.num_processes * machine.num_threads} threads: start the run with `{START} --nproc-per-node "
            f"{machine.num_processes}`. Results repeat to the bit for a fixed number only."
        )
    return Decision("num_threads", machine.num_threads, reason)


def _dtype(facts: ModelFacts) -> Decision:
    if facts.device.type != "cpu":
        return Decision("model.dtype", "bfloat16", "There is a GPU, which is fastest with it.")
    if facts.is_embedded:
        return Decision("model.dtype", "float32", "The model is small and the CPU exact with it.")
    seconds = product_seconds(facts.described.identity.width, (torch.float32, torch.bfloat16))
    ratio = seconds[torch.bfloat16] / seconds[torch.float32]
    faster = "bfloat16" if ratio < 1 else "float32"
    return Decision(
        "model.dtype",
        faster,
        f"No GPU. Timed on this CPU, a layer's product in bfloat16 takes {ratio:.1f} times as long as "
        "in float32.",
    )


def chat_decisions(facts: ModelFacts, task: TaskConfig) -> Iterator[Decision]:
    """Whether prompts go through the chat template, and what that puts in."""
    tokenizer = facts.described.tokenizer
    if not uses_chat_template(task, tokenizer):
        reason = "The tokenizer has no chat template: the model is asked with the bare prompt."
        yield Decision("task.chat_template", False, reason)
        return
    dated = with_date(facts, task)
    if dated is not task:
        day = str(dated.prompt_date)
        reason = "The chat template writes a date: this one, on every day."
        yield Decision("task.prompt_date", day, reason)
    told = chat_lines(dated, tokenizer)[1:]
    added = "; ".join(line.strip() for line in told)
    reason = f"The tokenizer has one{f' ({added})' if added else ''}."
    yield Decision("task.chat_template", True, reason)


def with_date(facts: ModelFacts, task: TaskConfig) -> TaskConfig:
    """The task with today's date, if the chat template cannot do without one."""
    tokenizer = facts.described.tokenizer
    if not uses_chat_template(task, tokenizer) or task.prompt_date is not None:
        return task
    try:
        describe_chat(task, tokenizer)
    except DataError:
        return task.model_copy(update={"prompt_date": date.today()})
    return task


def opens_thinking(facts: ModelFacts, task: TaskConfig) -> bool:
    """Whether the chat template makes the model begin with thinking."""
    tokenizer = facts.described.tokenizer
    if not uses_chat_template(task, tokenizer):
        return False
    return describe_chat(with_date(facts, task), tokenizer).opens_think


def generation_decisions(facts: ModelFacts, task: TaskConfig) -> Iterator[Decision]:
    """How long an answer may be and how many are decoded side by side."""
    if facts.is_embedded:
        return
    context = facts.described.max_tokens
    asked = min(PROMPT_TOKENS, context // 4)
    fits = context - asked
    if opens_thinking(facts, task):
        budget, why = THINKING_TOKENS, "The model begins with thinking, which is long"
    else:
        budget = ANSWER_TOKENS.get(task.grader, OTHER_ANSWER_TOKENS)
        why = f"Enough for most worked answers of a task graded as {task.grader}"
    if budget > fits:
        budget = fits
        why = f"What the model's context of {context} leaves beside a prompt of {asked}"
    ends = ", ".join(_token_texts(facts)) or "nothing but the budget"
    yield Decision(
        "generation.max_new_tokens",
        budget,
        f"{why}. An answer ends with {ends}. If --dry-run or the report says that many are cut off, "
        "raise it; if --dry-run proposes less, take that.",
    )
    memory = facts.machine.memory_bytes
    row = _row_bytes(facts.shape, asked + budget)
    rows = MAX_CPU_ROWS if facts.device.type == "cpu" else MAX_ROWS
    while rows > MIN_ROWS and rows * row > CACHE_SHARE * memory:
        rows = max(MIN_ROWS, rows // 2)
    yield Decision(
        "generation.max_rows",
        rows,
        f"Answers decoded side by side: at most {rows * row / GIB:.1f} GiB for their cache and logits, of "
        f"a process's {memory / GIB:.0f} GiB.",
    )


def _token_texts(facts: ModelFacts) -> list[str]:
    ids = list(facts.described.stop_token_ids)
    return [str(token) for token in facts.described.tokenizer.convert_ids_to_tokens(ids)]


def _row_bytes(shape: ModelShape, num_tokens: int) -> int:
    """Key-value cache of a row, and three copies of its logits."""
    cache = 2 * shape.num_layers * shape.kv_width * shape.bytes_per_weight * num_tokens
    return cache + 3 * shape.vocab_size * FLOAT32_BYTES


def steering_decisions(facts: ModelFacts) -> Iterator[Decision]:
    """What is steered where, and how rollouts are sampled for it."""
    if facts.is_embedded:
        reason = "The embedded models are shallow: the blocks where answers are decided."
        yield Decision("harvest.depths", [0.6, 0.8], reason)
        reason = "By the value head, and by the published rule."
        yield Decision("tune.modes", ["value", "preview"], reason)
        return
    temperature = (
        "Near to how the model is used; the gradient needs samples of what it really does."
    )
    yield Decision("rollout.temperature", 0.6, temperature)
    reason = "Nothing cut off: reward-gradient directions differentiate the whole distribution."
    yield Decision("rollout.top_p", 1.0, reason)
    last = facts.described.identity.num_blocks - 1
    # Of a shallow model two depths may be one block.
    depths = {round(depth * last): depth for depth in (0.625, 0.5, 0.375)}
    blocks = ", ".join(str(block) for block in sorted(depths))
    reason = (
        f"The middle of the model (blocks {blocks}), where directions gain most for their norm."
    )
    yield Decision("harvest.depths", sorted(depths.values()), reason)
    reason = (
        "Reward-gradient directions: no trials to pay for, and the way that has won on a real model. Add "
        "value, preview and static for the control basis, which costs several times as much."
    )
    yield Decision("tune.modes", ["vector"], reason)


def _pretrained(key: str, reason: str) -> Decision:
    return Decision(key, PRETRAINED[key], reason)


def learning_decisions(facts: ModelFacts) -> Iterator[Decision]:
    """How a student of the model is trained."""
    if facts.is_embedded:
        return
    reason = "Usual for LoRA on a pretrained model; the default of 2e-3 is for the embedded ones."
    yield _pretrained("distill.learning_rate", reason)
    yield Decision("distill.batch_size", 8, "Sequences a step: a worked answer is long.")
    reason = (
        "How far the exported adapter's logits may be from the trainer's: those of a real model run to "
        "tens, and rounding grows with them and with depth."
    )
    yield _pretrained("distill.logit_tolerance", reason)
