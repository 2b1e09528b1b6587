"""Choose which steered completions the student learns from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.distill.replay import ControlPoints, control_points_of, steered_block
from stir_train.distributed.engine import TrainEngine
from stir_train.train.loop import parts_of
from stir_train.types.rollout import GradedRollout, Rollout

IGNORED = -100


@dataclass(frozen=True)
class BatchConfig:
    """How samples become batches: sequences in a batch over all ranks, padding, order."""

    batch_size: int
    pad_token_id: int
    seed: int


@dataclass(frozen=True)
class SequenceBatch:
    """Right-padded ``token_ids Int[B T]``; ``labels`` are ignored on prompts and padding.

    ``num_targets`` counts the labels of the whole batch, of which this may be one rank's part;
    ``points`` are there for objectives that replay the teacher.
    """

    token_ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    mask: Int[Tensor, "B T"]
    num_targets: int
    points: ControlPoints | None = None

    @property
    def replayed(self) -> ControlPoints:
        """The control points, where the objective needs them."""
        assert self.points is not None
        return self.points


def choose_samples(graded: Sequence[GradedRollout], *, keep_per_prompt: int) -> list[Rollout]:
    """Correct completions, the shortest distinct ones of each prompt, in prompt order."""
    by_prompt: dict[str, list[Rollout]] = {}
    for item in graded:
        kept = by_prompt.setdefault(item.rollout.prompt_id, [])
        if item.grade.correct and all(item.rollout.token_ids != r.token_ids for r in kept):
            kept.append(item.rollout)
    return [
        rollout
        for rollouts in by_prompt.values()
        for rollout in sorted(rollouts, key=lambda r: (len(r.token_ids), r.sample))[
            :keep_per_prompt
        ]
    ]


def sequence_batches(
    samples: Sequence[Rollout],
    engine: TrainEngine,
    start: int,
    config: BatchConfig,
    directions: Float[Tensor, "K D"] | None = None,
) -> Iterator[list[SequenceBatch]]:
    """This rank's parts of every batch from step ``start`` on, shuffled epoch after epoch.

    With the basis's ``directions``, batches carry the impulses that their samples were made under.
    """
    block = steered_block(samples) if directions is not None else 0
    generator = torch.Generator().manual_seed(config.seed)
    step = 0
    while True:
        order = torch.randperm(len(samples), generator=generator).tolist()
        for first in range(0, len(order), config.batch_size):
            if step >= start:
                batch = order[first : first + config.batch_size]
                num_targets = sum(len(samples[i].token_ids) for i in batch)
                count = sum(len(samples[i].control_points) for i in batch)
                parts = []
                for part in parts_of(batch, engine):
                    own = [samples[i] for i in part] or [samples[batch[0]]]
                    made = _collate(own, config.pad_token_id, num_targets)
                    if not part:
                        made = _emptied(made)
                        own = [dataclasses.replace(own[0], control_points=())]
                    if directions is not None:
                        points = control_points_of(own, directions, block=block, count=count)
                        made = dataclasses.replace(made, points=points)
                    parts.append(made)
                yield parts
            step += 1


def _emptied(batch: SequenceBatch) -> SequenceBatch:
    """What a rank without samples feeds, to stay in step with the others: nothing is learnt of it."""
    return dataclasses.replace(batch, labels=torch.full_like(batch.labels, IGNORED))


def _collate(samples: Sequence[Rollout], pad_token_id: int, num_targets: int) -> SequenceBatch:
    width = max(len(s.prompt_token_ids) + len(s.token_ids) for s in samples)
    token_ids = torch.full((len(samples), width), pad_token_id)
    labels = torch.full_like(token_ids, IGNORED)
    mask = torch.zeros_like(token_ids)
    for row, sample in enumerate(samples):
        ids = torch.tensor([*sample.prompt_token_ids, *sample.token_ids])
        token_ids[row, : len(ids)] = ids
        labels[row, len(sample.prompt_token_ids) : len(ids)] = ids[len(sample.prompt_token_ids) :]
        mask[row, : len(ids)] = 1
    return SequenceBatch(token_ids, labels, mask, num_targets)
