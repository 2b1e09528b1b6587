"""Choose which completions the student learns from, and batch them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.distill.interface import ComparedTokens
from stir_train.distill.replay import ControlPoints, Replay, num_points
from stir_train.distributed.engine import TrainEngine
from stir_train.train.loop import all_parts_of, parts_of
from stir_train.types.rollout import GradedRollout, Rollout

IGNORED = -100


@dataclass(frozen=True)
class BatchConfig:
    """How samples become batches.

    Attributes:
        batch_size: Sequences in a batch over all ranks.
        pad_token_id: Fed past a sequence's end, and masked.
        seed: Of the order.
        bucket_batches: Sequences of so many batches are sorted by length before they are cut.
        instructed: By prompt id, the token ids of the prompt with the teacher's instruction in it; None if
            the teacher is given none.
        advantages: By prompt id and sample, of completions that are compared; None if they are not.
    """

    batch_size: int
    pad_token_id: int
    seed: int
    bucket_batches: int = 1
    instructed: Mapping[str, tuple[int, ...]] | None = None
    advantages: Mapping[tuple[str, int], float] | None = None


@dataclass(frozen=True)
class Comparison:
    """What compared completions are worth and were sampled at, a row each, as `SequenceBatch` holds them.

    Attributes:
        advantages: ``Float[B]``.
        logprobs: ``Float[B T]`` (nats), of the completions' tokens when they were sampled.
    """

    advantages: Float[Tensor, "B"]
    logprobs: Float[Tensor, "B T"]

    def at(self, counted: Bool[Tensor, "B S"]) -> ComparedTokens:
        """Those of tokens but the first of each row that count, row after row."""
        advantages = self.advantages[:, None].expand(counted.shape)[counted]
        return ComparedTokens(advantages, self.logprobs[:, 1:][counted])


@dataclass(frozen=True)
class SequenceBatch:
    """Right-padded ``token_ids Int[B T]``; ``labels`` are ignored on prompts and padding.

    ``num_targets`` counts the labels of the whole batch, of which this may be one rank's part, and
    ``most_targets`` those of its largest part; ``points`` are there for objectives that replay the steered
    teacher, ``instructed`` for those with an instruction: the same completions behind the prompts that the teacher
    reads; ``by_student`` if the tokens are the student's own, and so for the teacher to judge and no target;
    ``compared`` if completions are weighed by their advantages.
    """

    token_ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    mask: Int[Tensor, "B T"]
    num_targets: int
    most_targets: int
    points: ControlPoints | None = None
    instructed: SequenceBatch | None = None
    by_student: bool = False
    compared: Comparison | None = None

    @property
    def replayed(self) -> ControlPoints:
        """The control points, where the objective needs them."""
        assert self.points is not None
        return self.points


def choose_samples(
    graded: Sequence[GradedRollout], *, keep_per_prompt: int, hard_below: float = 0.0
) -> list[Rollout]:
    """Correct completions, the shortest distinct ones of each prompt, in prompt order.

    Args:
        graded: Completions of all prompts.
        keep_per_prompt: Of the shortest.
        hard_below: Of a prompt with a smaller share of correct completions, the one of middle length is
            kept too.
    """
    right: dict[str, list[Rollout]] = {}
    attempts: dict[str, list[bool]] = {}
    for item in graded:
        distinct = right.setdefault(item.rollout.prompt_id, [])
        attempts.setdefault(item.rollout.prompt_id, []).append(item.grade.correct)
        if item.grade.correct and all(item.rollout.token_ids != r.token_ids for r in distinct):
            distinct.append(item.rollout)
    chosen: list[Rollout] = []
    for prompt_id, distinct in right.items():
        ordered = sorted(distinct, key=lambda r: (len(r.token_ids), r.sample))
        chosen += ordered[:keep_per_prompt]
        rate = sum(attempts[prompt_id]) / len(attempts[prompt_id])
        middle = len(ordered) // 2
        if rate < hard_below and middle >= keep_per_prompt:
            chosen.append(ordered[middle])
    return chosen


def unverified_samples(graded: Sequence[GradedRollout], *, keep_per_prompt: int) -> list[Rollout]:
    """The first distinct completions of each prompt, whatever their grades, in prompt order.

    Those that the token budget cut off are left out: they would teach never to end.
    """
    drawn: dict[str, list[Rollout]] = {}
    for item in graded:
        kept = drawn.setdefault(item.rollout.prompt_id, [])
        is_new = all(item.rollout.token_ids != other.token_ids for other in kept)
        if is_new and not item.rollout.truncated and len(kept) < keep_per_prompt:
            kept.append(item.rollout)
    return [rollout for kept in drawn.values() for rollout in kept]


def compared_samples(
    graded: Sequence[GradedRollout], advantages: Mapping[tuple[str, int], float]
) -> list[Rollout]:
    """All completions that have an advantage, in their order: those of problems with unequal rewards."""
    rollouts = (item.rollout for item in graded)
    return [rollout for rollout in rollouts if (rollout.prompt_id, rollout.sample) in advantages]


def sequence_batches(
    samples: Sequence[Rollout],
    engine: TrainEngine,
    start: int,
    config: BatchConfig,
    replay: Replay | None = None,
) -> Iterator[list[SequenceBatch]]:
    """This rank's parts of every batch from step ``start`` on, shuffled epoch after epoch.

    With a ``replay``, batches carry what a steered teacher adds to their samples.
    """
    for indices in batch_indices(samples, start, config):
        batch = by_length(indices, samples, num_ranks=engine.world.size, num_parts=engine.num_parts)
        num_targets = num_tokens([samples[i] for i in batch])
        most_targets = max(num_tokens([samples[i] for i in p]) for p in all_parts_of(batch, engine))
        count = 0 if replay is None else num_points([samples[i] for i in batch], replay)
        parts = []
        for part in parts_of(batch, engine):
            own, made = collate_part(
                [samples[i] for i in part], samples[batch[0]], config, num_targets
            )
            if replay is not None:
                made = dataclasses.replace(made, points=replay.points_of(own, count=count))
            parts.append(dataclasses.replace(made, most_targets=most_targets))
        yield parts


def batch_indices(
    samples: Sequence[Rollout], start: int, config: BatchConfig
) -> Iterator[list[int]]:
    """Which samples every batch from step ``start`` on is made of, the same on every rank."""
    generator = torch.Generator().manual_seed(config.seed)
    step = 0
    while True:
        order = torch.randperm(len(samples), generator=generator).tolist()
        for batch in _cut(order, samples, config, generator):
            if step >= start:
                yield batch
            step += 1


def by_length(
    batch: Sequence[int], samples: Sequence[Rollout], *, num_ranks: int, num_parts: int
) -> list[int]:
    """A batch in an order whose parts (`all_parts_of`) hold sequences of like length, and so little padding.

    Ranks get about as many tokens each: of one round of parts the first rank has the shortest, of the next the longest.

    Args:
        batch: Indices of samples.
        samples: All of them.
        num_ranks: Processes that share the batch.
        num_parts: Parts that each cuts its share into.
    """
    ordered, count = list(batch), num_ranks * num_parts
    if count == 1:
        return ordered
    shortest_first = iter(
        sorted(batch, key=lambda i: len(samples[i].prompt_token_ids) + len(samples[i].token_ids))
    )
    for number in range(num_parts):
        ranks = range(num_ranks) if number % 2 == 0 else range(num_ranks - 1, -1, -1)
        for rank in ranks:
            for place in range(number * num_ranks + rank, len(batch), count):
                ordered[place] = next(shortest_first)
    return ordered


def _cut(
    order: list[int], samples: Sequence[Rollout], config: BatchConfig, generator: torch.Generator
) -> Iterator[list[int]]:
    """Cut an epoch's order into batches, of sequences of like length if buckets are on."""
    size = config.batch_size
    window = size * config.bucket_batches
    for first in range(0, len(order), window):
        bucket = order[first : first + window]
        if config.bucket_batches == 1:
            yield bucket
            continue
        bucket.sort(key=lambda i: len(samples[i].prompt_token_ids) + len(samples[i].token_ids))
        batches = [bucket[i : i + size] for i in range(0, len(bucket), size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


def collate_part(
    own: Sequence[Rollout], filler: Rollout, config: BatchConfig, num_targets: int
) -> tuple[Sequence[Rollout], SequenceBatch]:
    """A part of a batch and its rows; a part without samples is a filler that nothing is learned of."""
    given = own or [filler]
    made = collate(given, config.pad_token_id, num_targets)
    if config.instructed is not None:
        read = [
            dataclasses.replace(sample, prompt_token_ids=config.instructed[sample.prompt_id])
            for sample in given
        ]
        instructed = collate(read, config.pad_token_id, num_targets)
        made = dataclasses.replace(made, instructed=instructed)
    if config.advantages is not None:
        compared = _compare(given, config.advantages, width=made.token_ids.shape[1])
        made = dataclasses.replace(made, compared=compared)
    if own:
        return own, made
    return [dataclasses.replace(filler, control_points=())], _emptied(made)


def _compare(
    samples: Sequence[Rollout], advantages: Mapping[tuple[str, int], float], *, width: int
) -> Comparison:
    logprobs = torch.zeros(len(samples), width)
    for row, sample in enumerate(samples):
        begin = len(sample.prompt_token_ids)
        logprobs[row, begin : begin + len(sample.token_ids)] = torch.tensor(sample.logprobs)
    worth = [advantages[sample.prompt_id, sample.sample] for sample in samples]
    return Comparison(torch.tensor(worth), logprobs)


def _emptied(batch: SequenceBatch) -> SequenceBatch:
    """What a rank without samples feeds, to stay in step with the others: nothing is learned of it."""
    nothing = torch.full_like(batch.labels, IGNORED)
    instructed = None if batch.instructed is None else _emptied(batch.instructed)
    return dataclasses.replace(batch, labels=nothing, instructed=instructed)


def collate(samples: Sequence[Rollout], pad_token_id: int, num_targets: int) -> SequenceBatch:
    """Prompts and completions in right-padded rows, completions being the labels, as one part."""
    width = max(len(s.prompt_token_ids) + len(s.token_ids) for s in samples)
    token_ids = torch.full((len(samples), width), pad_token_id)
    labels = torch.full_like(token_ids, IGNORED)
    mask = torch.zeros_like(token_ids)
    for row, sample in enumerate(samples):
        ids = torch.tensor([*sample.prompt_token_ids, *sample.token_ids])
        token_ids[row, : len(ids)] = ids
        labels[row, len(sample.prompt_token_ids) : len(ids)] = ids[len(sample.prompt_token_ids) :]
        mask[row, : len(ids)] = 1
    return SequenceBatch(token_ids, labels, mask, num_targets, num_tokens(samples))


def num_tokens(samples: Sequence[Rollout]) -> int:
    """Completion tokens of all samples, prompts not counted."""
    return sum(len(sample.token_ids) for sample in samples)
