"""Measure what this machine does with a run's model: for `--dry-run`, and written nowhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from stir_train.config.learning import ObjectiveConfig
from stir_train.config.run import RunConfig
from stir_train.data.prompts import cut_splits, render_prompts
from stir_train.directions.gradients import GradientSettings, rollout_gradients
from stir_train.distill.objective import DistillLoss
from stir_train.distill.samples import IGNORED, SequenceBatch
from stir_train.distributed.world import alone
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import MIN_REQUESTS
from stir_train.generation.transformers.shared_prefix import shared_tokens
from stir_train.launch.costs import Rates, rows_side_by_side
from stir_train.launch.estimate import ModelShape, shape_of
from stir_train.launch.lengths import expected_lengths, long_answer
from stir_train.models.describe import decoder_config
from stir_train.models.lora import Student, add_lora
from stir_train.runtime.context import set_threads
from stir_train.runtime.problems import read_problems
from stir_train.runtime.resources import Resources
from stir_train.types.rollout import Prompt, Rollout

LENGTH_SECONDS, MOST_LENGTH_SECONDS, WIDTH_SECONDS = 30.0, 240.0, 8.0
"""Of decoding few answers until most of them have ended, at the most, and of decoding at the run's width."""
MIN_STEPS = 4
NUM_ANSWERS, WIDE_PROMPTS = 32, 4
PREFILLED_PROMPTS = MIN_REQUESTS
"""As few as are prefilled with packed weights, as a chunk is."""
LONG_SHARE = 1e-3
"""Of answers, those that exceed what is said to be a long one."""
GOING_ON = 0.25
"""Of those few answers, how many may still go on when the time is up; their lengths are estimated."""
LEARNED_TOKENS, LEARNED_SECONDS = 1024, 15.0
"""At most so many go backward at once, and about so long: products of few tokens are slower than the run's."""
MIN_LEARNED_TOKENS, NUM_HEAD_STEPS = 64, 20
SOME_SECONDS = 2.0
BACKWARD_COST = 3.0
"""Forward and backward over forward alone, to choose how many tokens are measured."""


class _TimeIsUp(Exception):  # noqa: N818 - no error
    """Ends a generation from inside."""


@dataclass
class _Clock:
    """Listens to a generation: when each step began and how many rows it had, and each answer's tokens.

    Attributes:
        deadline: When it stops the generation, after at least three steps, once few enough answers go on.
        patience: How much longer it waits for that, in seconds.
        num_left: How many are few enough.
        begun: When each step's first token came.
        rows: Of each step.
        lengths: Tokens so far, by request.
        is_stopped: Whether the time was up before all answers had ended.
    """

    deadline: float
    patience: float = 0.0
    num_left: int = 0
    begun: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    lengths: dict[int, int] = field(default_factory=dict)
    is_stopped: bool = False
    _seen: set[int] = field(default_factory=set)

    def __call__(self, index: int, _token_id: int) -> None:
        """Take note of a token."""
        if not self.begun or index in self._seen:
            now = time.perf_counter()
            few = len(self._seen) <= self.num_left
            late = self.deadline if few else self.deadline + self.patience
            if now > late and len(self.begun) > MIN_STEPS:
                self.is_stopped = True
                raise _TimeIsUp
            self.begun.append(now)
            self.rows.append(0)
            self._seen.clear()
        self._seen.add(index)
        self.rows[-1] += 1
        self.lengths[index] = self.lengths.get(index, 0) + 1

    @property
    def going_on(self) -> frozenset[int]:
        """Requests whose answers were stopped."""
        return frozenset(self._seen) if self.is_stopped else frozenset()

    @property
    def steps(self) -> list[tuple[int, float]]:
        """Rows and seconds of every step but the first, which is the prompts' own, and the last."""
        pairs = zip(self.rows[1:-1], np.diff(self.begun)[1:], strict=True)
        return [(rows, float(seconds)) for rows, seconds in pairs]


def measure(config: RunConfig) -> tuple[Rates, ModelShape]:
    """Load the model, answer some of the harvest split's prompts, and time it all.

    Raises:
        StirError: If the model or the problems cannot be read.
    """
    set_threads(config)
    resources = Resources(config, alone())
    try:
        cut = cut_splits(read_problems(config), config.splits)
        prompts = render_prompts(cut["harvest"], config.task, resources.described.tokenizer)
        begun = time.perf_counter()
        _ = resources.loaded
        load_seconds = time.perf_counter() - begun
        wide = resources.loaded.model.dtype == torch.float32
        rates = _measure(config, resources, prompts, load_seconds)
    finally:
        resources.close()
    return rates, shape_of(decoder_config(config.model), bytes_per_weight=4 if wide else 2)


def _measure(
    config: RunConfig, resources: Resources, prompts: Sequence[Prompt], load_seconds: float
) -> Rates:
    prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts) / len(prompts)
    # From all over the split: a problem's place in it may go with its length.
    some = [prompts[number * len(prompts) // NUM_ANSWERS] for number in range(NUM_ANSWERS)]
    # The first call of all also warms up: it is not counted.
    _decode(config, resources, some[:1], budget=4, seconds=WIDTH_SECONDS)
    # Where the split is small, some are there twice; equal ones are fed once.
    distinct = list({prompt.token_ids: prompt for prompt in some}.values())
    prefill = _prefill_rate(config, resources, distinct[:PREFILLED_PROMPTS])
    few = _decode(
        config,
        resources,
        some,
        budget=None,
        seconds=LENGTH_SECONDS,
        patience=MOST_LENGTH_SECONDS - LENGTH_SECONDS,
    )
    rows = min(
        rows_side_by_side(config, prompt_tokens),
        config.splits.num_harvest * config.rollout.num_samples,
    )
    wide = [prompts[number % min(WIDE_PROMPTS, len(prompts))] for number in range(rows)]
    many = _decode(
        config, resources, sorted(wide, key=prompts.index), budget=None, seconds=WIDTH_SECONDS
    )
    step_seconds, row_seconds = _fit([*few.steps, *many.steps])
    lengths, longest, num_ended = _whole_lengths(config, few)
    most = round(prefill * LEARNED_SECONDS / BACKWARD_COST)
    most = max(MIN_LEARNED_TOKENS, min(LEARNED_TOKENS, most))
    answer = round(float(np.mean(lengths)))
    gradient = training = prefill
    if config.makes_directions:
        gradient = _gradient_rate(config, resources, prompts, (answer, most))
    if config.distill.enabled:
        training = _training_rate(config, resources, (round(prompt_tokens), answer, most))
    return Rates(
        prefill_tokens=prefill,
        step_seconds=step_seconds,
        row_seconds=row_seconds,
        gradient_tokens=gradient,
        training_tokens=training,
        head_step_seconds=_head_step_seconds(config, resources.described.identity.width),
        load_seconds=load_seconds,
        prompt_tokens=prompt_tokens,
        shared_tokens=_num_shared(some),
        answer_tokens=lengths,
        long_answer_tokens=longest,
        num_ended=num_ended,
    )


def _decode(
    config: RunConfig,
    resources: Resources,
    prompts: Sequence[Prompt],
    *,
    budget: int | None,
    seconds: float,
    patience: float = 0.0,
) -> _Clock:
    """Sample an answer to each, as `rollout` does, until the time is up.

    With ``patience`` so much longer, for most of them to come to their end.
    """
    control = ControlSpec(
        resources.automaton, config.control_points.max_points, resources.captured_blocks
    )
    sampling = _sampling(config, resources, budget)
    clock = _Clock(time.perf_counter() + seconds, patience, int(GOING_ON * len(prompts)))
    requests = [GenerationRequest(prompt, sample) for sample, prompt in enumerate(prompts)]
    with suppress(_TimeIsUp):
        resources.engine.generate(
            requests, sampling, seed=config.seed, control=control, listener=clock
        )
    return clock


def _sampling(config: RunConfig, resources: Resources, budget: int | None = None) -> SamplingParams:
    """As the rollouts are sampled."""
    rollout = config.rollout
    return SamplingParams(
        budget or config.generation.max_new_tokens,
        resources.described.stop_token_ids,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
    )


def _num_shared(prompts: Sequence[Prompt]) -> int:
    """Tokens that all prompts begin with, which are fed once."""
    return len(shared_tokens([GenerationRequest(prompt) for prompt in prompts], ()))


def _prefill_rate(config: RunConfig, resources: Resources, prompts: Sequence[Prompt]) -> float:
    """Tokens a second, from the first pass on, where it is seen: before it weights are packed, once a chunk."""
    called, begun = time.perf_counter(), list[float]()
    model = resources.loaded.model
    handle = model.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter()))
    try:
        _decode(config, resources, prompts, budget=1, seconds=WIDTH_SECONDS)
    finally:
        handle.remove()
    num_shared = _num_shared(prompts)
    fed = num_shared + sum(len(prompt.token_ids) - num_shared for prompt in prompts)
    return fed / (time.perf_counter() - next(iter(begun), called))


def _fit(steps: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Seconds of a step, and of each of its rows, from steps of several widths; neither is negative.

    Every width's steps count by their median, so that a hiccup of the machine does not.
    """
    widths = sorted({rows for rows, _ in steps})
    medians = [float(np.median([s for rows, s in steps if rows == width])) for width in widths]
    weights = np.sqrt([sum(rows == width for rows, _ in steps) for width in widths])
    design = np.stack([np.ones(len(widths)), np.array(widths)], axis=1) * weights[:, None]
    base, slope = np.linalg.lstsq(design, np.array(medians) * weights, rcond=None)[0]
    if slope <= 0:
        return float(np.mean(medians)), 0.0
    if base <= 0:
        return 0.0, float(np.mean(np.array(medians) / np.array(widths)))
    return float(base), float(slope)


def _whole_lengths(config: RunConfig, clock: _Clock) -> tuple[tuple[int, ...], int, int]:
    """Tokens of every answer, what hardly one exceeds, and how many were decoded to their end."""
    going_on, budget = clock.going_on, config.generation.max_new_tokens
    indices = sorted(clock.lengths)
    seen = [clock.lengths[index] for index in indices]
    has_ended = [index not in going_on for index in indices]
    longest = long_answer(seen, has_ended, budget=budget, share=LONG_SHARE)
    return expected_lengths(seen, has_ended, budget=budget), longest, sum(has_ended)


def _gradient_rate(
    config: RunConfig, resources: Resources, prompts: Sequence[Prompt], sizes: tuple[int, int]
) -> float:
    """Tokens of rollouts, prompts included, that `directions` differentiates a second.

    Args:
        config: Of the run.
        resources: The frozen model.
        prompts: One is asked about under many names, so that all are equally long.
        sizes: Tokens of an answer, and of a batch at most.
    """
    length, most = sizes
    most = min(most, config.directions.max_batch_tokens)
    length = max(1, min(length, most))
    num_samples = config.rollout.num_samples
    asked = prompts[0].token_ids
    rollouts = [
        Rollout(
            prompt_id=str(number // num_samples),
            sample=number % num_samples,
            prompt_token_ids=(number // num_samples, *asked[1:]),
            token_ids=(0,) * length,
            logprobs=(0.0,) * length,
            control_points=(),
            finish_reason="length",
        )
        for number in range(max(1, most // length))
    ]
    settings = GradientSettings(
        blocks=tuple(sorted({resources.block_at(depth) for depth in config.direction_depths})),
        sampling=_sampling(config, resources),
        max_points=config.control_points.max_points,
        filtered=config.directions.filtered,
        max_batch_tokens=config.directions.max_batch_tokens,
        keep_points=config.steers_along_gradients,
    )

    def once() -> Tensor:
        return rollout_gradients(resources.loaded, rollouts, settings)[0].sums

    num_tokens = sum(len(r.prompt_token_ids) + len(r.token_ids) for r in rollouts)
    return num_tokens / _seconds_of(once)


def _training_rate(config: RunConfig, resources: Resources, sizes: tuple[int, int, int]) -> float:
    """Tokens a second, prompts included, in steps of a student on samples alone; the model is of no use afterwards.

    Args:
        config: Of the run.
        resources: The model that becomes the student.
        sizes: Tokens of a prompt, of an answer, and of what goes backward at once at most.
    """
    prompt, answer, most = sizes
    width = max(2, min(prompt + answer, most))
    at_once = config.distill.batch_size // config.train.gradient_accumulation
    num_rows = max(1, min(at_once, most // width))
    loaded = resources.loaded
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.train.dtype]
    nn.Module.to(loaded.model, dtype)
    student = Student(loaded, add_lora(loaded, config.distill, seed=config.seed))
    if config.train.activation_checkpointing:
        student.recompute_activations()
    optimizer = torch.optim.AdamW([p for p in student.model.parameters() if p.requires_grad])
    loss_of = DistillLoss(student.model, student, ObjectiveConfig())
    # Which tokens does not matter.
    ids = torch.zeros(num_rows, width, dtype=torch.long, device=loaded.device)
    labels = ids.clone()
    labels[:, : min(prompt, width - 1)] = IGNORED
    num_targets = int((labels != IGNORED).sum())
    batch = SequenceBatch(ids, labels, torch.ones_like(ids), num_targets, num_targets)

    def once() -> Tensor:
        loss = torch.stack(list(loss_of(batch).values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return ids.numel() / _seconds_of(once)


def _seconds_of(step: Callable[[], Tensor]) -> float:
    """Of a step, the median of as many as there is time for."""
    taken: list[float] = []
    begun = time.perf_counter()
    while not taken or time.perf_counter() - begun < SOME_SECONDS:
        last = time.perf_counter()
        step().sum().item()  # waits for what a GPU still has to do
        taken.append(time.perf_counter() - last)
    return float(np.median(taken))


def _head_step_seconds(config: RunConfig, width: int) -> float:
    """An optimizer step of networks like a block's value heads."""
    value = config.value
    num_inputs = width * (len(config.harvest.depths) if value.reads_below else 1)
    heads = [
        nn.Sequential(nn.Linear(num_inputs, value.hidden_width), nn.GELU(), nn.Linear(value.hidden_width, 2))
        for _ in range(value.num_members)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW([p for head in heads for p in head.parameters()])
    states = torch.ones(value.batch_size, num_inputs)
    begun = time.perf_counter()
    for _ in range(NUM_HEAD_STEPS):
        loss = torch.stack([head(states).square().mean() for head in heads]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - begun) / NUM_HEAD_STEPS
