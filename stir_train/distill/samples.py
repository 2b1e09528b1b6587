"""Choose which steered completions the student learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from stir_train.types.rollout import GradedRollout, Rollout

IGNORED = -100


@dataclass(frozen=True)
class SequenceBatch:
    """Right-padded ``token_ids Int[B T]``; ``labels`` are ignored on prompts and padding."""

    token_ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    mask: Int[Tensor, "B T"]


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
    samples: Sequence[Rollout], *, batch_size: int, pad_token_id: int, seed: int
) -> Iterator[SequenceBatch]:
    """Yield shuffled batches for ever, epoch after epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(samples), generator=generator).tolist()
        for start in range(0, len(order), batch_size):
            yield _collate([samples[i] for i in order[start : start + batch_size]], pad_token_id)


def _collate(samples: Sequence[Rollout], pad_token_id: int) -> SequenceBatch:
    width = max(len(s.prompt_token_ids) + len(s.token_ids) for s in samples)
    token_ids = torch.full((len(samples), width), pad_token_id)
    labels = torch.full_like(token_ids, IGNORED)
    mask = torch.zeros_like(token_ids)
    for row, sample in enumerate(samples):
        ids = torch.tensor([*sample.prompt_token_ids, *sample.token_ids])
        token_ids[row, : len(ids)] = ids
        labels[row, len(sample.prompt_token_ids) : len(ids)] = ids[len(sample.prompt_token_ids) :]
        mask[row, : len(ids)] = 1
    return SequenceBatch(token_ids, labels, mask)
