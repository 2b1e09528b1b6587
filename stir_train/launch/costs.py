"""What each stage of a run takes, from what this machine was measured to do. Torch-free.

`stir_train.tools.measure` measures the rates; `stir_train.launch.estimate` bounds a run without any.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from stir_train.config.pipeline import STAGE_NAMES
from stir_train.config.run import RunConfig
from stir_train.config.stages import GenerationConfig
from stir_train.launch.estimate import (
    BASELINE_COMPLETIONS,
    GIB,
    TOKEN_BYTES,
    Estimate,
    ModelShape,
    estimate,
)
from stir_train.types.places import PLACES_AT_PROMPT

MIXED_SHARE = 0.7
"""Of rollouts, those of problems with right and wrong answers, which alone are differentiated."""
STATE_BYTES = 4
NUM_PLACES = 4
"""Of which gradients are kept: `types.directions.PLACES`."""


@dataclass(frozen=True)
class Rates:
    """What one process does here.

    Attributes:
        prefill_tokens: A second.
        step_seconds, row_seconds: A decode step takes the first, and the second more for every row.
        gradient_tokens: A second, forward and backward through the frozen model.
        training_tokens: A second, in steps of a student. These two mean nothing where nothing is learned.
        head_step_seconds: An optimizer step of a block's value heads.
        load_seconds: Of the model.
        prompt_tokens: Of a prompt, on average.
        shared_tokens: Of these, what all prompts begin with, fed once a chunk.
        answer_tokens: Of sampled answers; of those that were stopped, what they would have come to.
        long_answer_tokens: What one answer in a thousand exceeds, by the distribution of these.
        num_ended: Answers that came to their end.
    """

    prefill_tokens: float
    step_seconds: float
    row_seconds: float
    gradient_tokens: float
    training_tokens: float
    head_step_seconds: float
    load_seconds: float
    prompt_tokens: float
    shared_tokens: int
    answer_tokens: tuple[int, ...]
    long_answer_tokens: int
    num_ended: int

    @property
    def mean_answer_tokens(self) -> float:
        """Mean length of a measured answer, in tokens."""
        return sum(self.answer_tokens) / len(self.answer_tokens)

    def decode_tokens(self, num_rows: int) -> float:
        """Tokens decoded a second with so many rows side by side."""
        return num_rows / (self.step_seconds + num_rows * self.row_seconds)


@dataclass(frozen=True)
class StageCost:
    """What a stage takes.

    Attributes:
        name: The stage.
        num_tokens: Decoded or trained on.
        hours: Of all processes together, which share the work.
        memory_gib: Of one process, at most.
        disk_gib: Of what it writes.
    """

    name: str
    num_tokens: float
    hours: float
    memory_gib: float
    disk_gib: float


@dataclass(frozen=True)
class _Job:
    """Prompts that are answered by themselves, so often; ``is_shared`` if all those times share batches."""

    num_prompts: int
    num_samples: int = 1
    times: float = 1.0
    is_shared: bool = False

    @property
    def num_completions(self) -> float:
        return self.num_prompts * self.num_samples * self.times

    def chunks(self, limits: GenerationConfig) -> Iterator[tuple[int, float]]:
        """Prompts that a process takes at a time, and how many times it comes to so many."""
        num_prompts, times = self.num_prompts, self.times
        size = limits.prompts_per_chunk(num_prompts, self.num_samples)
        if self.is_shared:
            num_prompts, times = round(num_prompts * times), 1.0
            most = limits.chunk_completions // size * size
            size = min(most, -(-limits.prompts_per_chunk(num_prompts) // size) * size)
        whole, rest = divmod(num_prompts, size)
        yield size, whole * times
        yield rest, times


def stage_costs(
    config: RunConfig,
    shape: ModelShape,
    rates: Rates,
    *,
    num_processes: int = 1,
    on_gpu: bool = False,
) -> list[StageCost]:
    """The stages that are on and take more than a moment, in order, on processes of the measured rates."""
    bound = estimate(config, shape, num_ranks=num_processes, on_gpu=on_gpu)
    costs = [_cost(name, config, shape, rates, bound, num_processes) for name in STAGE_NAMES]
    return [cost for cost in costs if cost.hours > 0]


def rollout_seconds(config: RunConfig, rates: Rates) -> float:
    """Of all rollouts, by one process."""
    return _seconds([_Job(config.splits.num_harvest, config.rollout.num_samples)], config, rates)


def chunk_seconds(config: RunConfig, rates: Rates) -> float:
    """Of a full chunk of rollouts."""
    num_samples = config.rollout.num_samples
    num_prompts = config.generation.prompts_per_chunk(config.splits.num_harvest, num_samples)
    return _batch_seconds(num_prompts, num_samples, config, rates)


def _cost(
    name: str,
    config: RunConfig,
    shape: ModelShape,
    rates: Rates,
    bound: Estimate,
    num_processes: int,
) -> StageCost:
    phases = list(_phases(name, config))
    num_completions = sum(job.num_completions for phase in phases for job in phase)
    tokens = num_completions * _mean_length(config, rates)
    seconds = sum(_seconds(phase, config, rates, num_processes) for phase in phases)
    trained = _trained_tokens(name, config, rates)
    rate = rates.training_tokens if name == "distill" else rates.gradient_tokens
    seconds += trained / rate / num_processes + _other_seconds(name, config, rates)
    learned = {"directions": bound.gradient_gib, "distill": bound.train_gib}
    disk = tokens * TOKEN_BYTES
    if name in ("rollout", "validate"):
        disk += _state_bytes(name, config, shape)
    if name == "directions" and config.makes_directions:
        disk += _gradient_bytes(config, shape)
    if name == "directions" and config.steers_along_gradients:
        # States, and two gradients at each of them, of the rollouts that are differentiated.
        disk += 3 * MIXED_SHARE * _state_bytes("rollout", config, shape)
    if name == "distill" and trained:
        disk += config.distill.rank * shape.num_layers * shape.num_linear * STATE_BYTES
        disk += (1 + len(config.distill.also)) * bound.weights_gib * GIB  # the merged model
    # A later step of the directions decodes too.
    memory = max(learned.get(name, 0.0), bound.generate_gib)
    return StageCost(name, tokens + trained, seconds / 3600, memory, disk / GIB)


def _phases(name: str, config: RunConfig) -> Iterator[Sequence[_Job]]:
    """What a stage decodes: jobs that processes share, one such phase after another."""
    splits, distill = config.splits, config.distill
    students = distill.enabled * (1 + len(distill.also))
    others = len(config.baselines.names)
    if name == "rollout":
        yield [_Job(splits.num_harvest, config.rollout.num_samples)]
    elif name == "directions" and config.makes_directions:
        for _ in range(config.directions.num_steps - 1):  # each later step samples anew
            yield [_Job(splits.num_harvest, config.rollout.num_samples)]
    elif name == "validate" and config.needs_basis and config.validation.enabled:
        yield from _replayed(config)
    elif name == "tune":
        greedy = [_Job(splits.num_tune)]
        if config.tune.enabled:
            first, *later = _halving(splits.num_tune, config.num_tried_settings, config)
            yield from _after(greedy, [first], config)
            yield from ([job] for job in later)
        else:
            yield greedy
    elif name == "steer" and distill.enabled:
        yield [_Job(splits.num_harvest, distill.num_samples)]
    elif name == "baselines" and others:
        yield [_Job(splits.num_tune, times=others * BASELINE_COMPLETIONS)]
    elif name == "evaluate":
        yield from _evaluated(config, students, others)


def _replayed(config: RunConfig) -> Iterator[Sequence[_Job]]:
    """Greedy answers to harvest problems, and replays of them, a round after another."""
    validation = config.validation
    yield [_Job(config.splits.num_harvest)]
    trials = validation.num_completions(len(config.harvest.depths))
    for _ in range(validation.num_rounds):
        yield [_Job(trials // validation.num_rounds)]


def _evaluated(config: RunConfig, students: int, others: int) -> Iterator[Sequence[_Job]]:
    """Greedy decoding, all others of the model, and the students, a model each."""
    num_test, evaluate = config.splits.num_test, config.evaluate
    steered = config.num_steered_methods + len(evaluate.variants)
    rest = [_Job(num_test, times=steered, is_shared=_tries_vectors_alone(config))]
    if others:
        rest.append(_Job(num_test, times=others))
    deployable = 2 + students
    if evaluate.num_samples is not None:
        rest.append(_Job(num_test, evaluate.num_samples, deployable))
    for task in evaluate.out_of_domain.values():
        rest.append(_Job(task.num_problems, times=deployable + config.num_controls + others))
    yield from _after([_Job(num_test)], rest, config)
    for _ in range(students):
        yield [_Job(num_test)]


def _after(
    greedy: Sequence[_Job], rest: Sequence[_Job], config: RunConfig
) -> Iterator[Sequence[_Job]]:
    """Greedy answers first where others go on from them, else with the others, in their batches where they can."""
    first, [one] = rest[0], greedy
    if _tries_vectors_alone(config) and first.num_prompts == one.num_prompts:
        yield [dataclasses.replace(first, times=first.times + one.times), *rest[1:]]
    elif _tries_vectors_alone(config):
        yield [*greedy, *rest]
    else:
        yield greedy
        yield rest


def _halving(num_problems: int, num_settings: int, config: RunConfig) -> Iterator[_Job]:
    """All settings on the first part, the better half of them on the next, which is as large, and so on."""
    halvings = config.tune.num_halvings
    first, is_shared = max(1, num_problems >> halvings), _tries_vectors_alone(config)
    yield _Job(first, times=num_settings, is_shared=is_shared)
    for number in range(halvings):
        times = max(1.0, num_settings / 2 ** (number + 1))
        yield _Job(first << number, times=times, is_shared=is_shared)


def _tries_vectors_alone(config: RunConfig) -> bool:
    """Whether all that is tried is vectors that act from the prompt on, whose answers share batches."""
    places = set(config.tune.vectors) <= PLACES_AT_PROMPT
    return config.tune.enabled and set(config.tune.modes) == {"vector"} and places


def _trained_tokens(name: str, config: RunConfig, rates: Rates) -> float:
    """Tokens that go forward and backward through the model."""
    length = rates.prompt_tokens + _mean_length(config, rates)
    if name == "directions" and config.makes_directions:
        num_rollouts = config.splits.num_harvest * config.rollout.num_samples
        return MIXED_SHARE * config.directions.num_steps * num_rollouts * length
    if name == "distill" and config.distill.enabled:
        students = 1 + len(config.distill.also)
        return students * config.distill.num_steps * config.distill.batch_size * length
    return 0.0


def _other_seconds(name: str, config: RunConfig, rates: Rates) -> float:
    """Loading models, and value heads."""
    fits = config.value.num_steps * rates.head_step_seconds * len(config.harvest.depths)
    if name == "value":
        return fits * config.needs_basis
    if name == "validate" and config.needs_basis and config.validation.enabled:
        return fits * (config.validation.num_rounds - 1)
    students = config.distill.enabled * (1 + len(config.distill.also))
    loads = {"rollout": 1, "distill": 3 * students, "evaluate": students}
    return loads.get(name, 0) * rates.load_seconds


def _gradient_bytes(config: RunConfig, shape: ModelShape) -> float:
    """Gradients and mean states of the rollouts that are differentiated, a vector a block and place."""
    num_rollouts = (
        config.splits.num_harvest * config.rollout.num_samples * config.directions.num_steps
    )
    vectors = 2 * NUM_PLACES * len(config.direction_depths)
    return MIXED_SHARE * num_rollouts * vectors * shape.width * STATE_BYTES


def _state_bytes(name: str, config: RunConfig, shape: ModelShape) -> float:
    num_rollouts = config.splits.num_harvest
    num_rollouts *= config.rollout.num_samples if name == "rollout" else 1
    if name == "validate" and not (config.needs_basis and config.validation.enabled):
        return 0.0
    states = num_rollouts * config.control_points.max_points * len(config.harvest.depths)
    return float(states * shape.width * STATE_BYTES)


def _seconds(
    jobs: Sequence[_Job], config: RunConfig, rates: Rates, num_processes: int = 1
) -> float:
    """Of prefilling jobs' prompts and decoding them chunk by chunk, by processes that each take the next chunk."""
    chunks = [chunk for job in jobs for chunk in _chunks(job, config, rates)]
    if num_processes == 1:
        return sum(seconds * count for seconds, count in chunks)
    ends = [0.0] * num_processes
    for seconds, count in chunks:
        for _ in range(math.ceil(count)):
            heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def likely_lengths(config: RunConfig, rates: Rates) -> tuple[int, ...]:
    """Lengths to reckon with: the measured ones, and half an answer that runs on to the token budget.

    A few answers seldom show the one that never ends, for which a whole chunk waits. Half an observation is what
    Jeffreys' prior adds.
    """
    # In the middle, so that a batch has it that is more than half as long.
    return (*rates.answer_tokens, config.generation.max_new_tokens, *rates.answer_tokens)


def _mean_length(config: RunConfig, rates: Rates) -> float:
    lengths = likely_lengths(config, rates)
    return sum(lengths) / len(lengths)


def _chunks(job: _Job, config: RunConfig, rates: Rates) -> list[tuple[float, float]]:
    """Seconds of a job's chunks, and how many take so long."""
    return [
        (_batch_seconds(num_prompts, job.num_samples, config, rates), count)
        for num_prompts, count in job.chunks(config.generation)
    ]


def _batch_seconds(num_prompts: int, num_samples: int, config: RunConfig, rates: Rates) -> float:
    """Of prompts that are prefilled and answered in one go."""
    rows = rows_side_by_side(config, rates.prompt_tokens)
    steps, row_steps = _steps(num_prompts * num_samples, rows, likely_lengths(config, rates))
    fed = rates.shared_tokens + num_prompts * (rates.prompt_tokens - rates.shared_tokens)
    prefilling = num_prompts and fed / rates.prefill_tokens
    return prefilling + steps * rates.step_seconds + row_steps * rates.row_seconds


def rows_side_by_side(config: RunConfig, prompt_tokens: float) -> int:
    """Rows that the run decodes at once."""
    limits = config.generation
    rows = min(limits.max_rows, limits.chunk_completions)
    if limits.max_cache_tokens is not None:
        context = int(prompt_tokens) + limits.max_new_tokens
        rows = max(1, min(rows, limits.max_cache_tokens // context))
    return rows


@lru_cache(maxsize=256)
def _steps(num_completions: int, rows: int, lengths: Sequence[int]) -> tuple[int, int]:
    """Decode steps of a chunk whose finished rows are refilled, and the rows of all of them together."""
    ends: list[int] = []
    row_steps = last = 0
    for number in range(num_completions):
        begun = heapq.heappop(ends) if len(ends) == rows else 0
        length = lengths[number % len(lengths)]
        heapq.heappush(ends, begun + length)
        row_steps += length
        last = max(last, begun + length)
    return last, row_steps
