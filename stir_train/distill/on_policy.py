"""Batches that the student samples itself, with what the teacher would have done to them.

The teacher decides at every control point of a finished completion in the one pass that scores it
(`DecidedAgain`), and needs no decoding of its own (on-policy distillation, GKD, arXiv 2306.13649).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from stir_train.distill.replay import DecidedAgain, num_points
from stir_train.distill.samples import (
    BatchConfig,
    SequenceBatch,
    batch_indices,
    collate_part,
    num_tokens,
)
from stir_train.distributed.engine import TrainEngine
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.open import Limits, open_backend
from stir_train.models.lora import Student
from stir_train.train.loop import parts_of
from stir_train.types.rollout import Prompt, Rollout


@dataclass(frozen=True)
class StudentSampling:
    """How a student in training answers the prompts of a batch.

    Attributes:
        student: Whole in this process.
        prompts: Of the samples, by id.
        sampling: As for rollouts.
        control: Where control points are.
        replay: What the steered teacher adds to a completion; None of a teacher that is given an instruction.
        seed: Of the noise, and of which batches are sampled.
        share: Of the batches.
    """

    student: Student
    prompts: Mapping[str, Prompt]
    sampling: SamplingParams
    control: ControlSpec
    replay: DecidedAgain | None
    seed: int
    share: float

    def takes(self, step: int) -> bool:
        """Whether the student samples the batch of a step (0-based)."""
        return random.Random(f"{self.seed}/{step}").random() < self.share

    def answer(self, samples: Sequence[tuple[int, Rollout]]) -> list[Rollout]:
        """Fresh completions of the samples' prompts by the student as it is now.

        Args:
            samples: With a number for each that no other completion of the fit has.
        """
        if not samples:
            return []
        was_training = self.student.model.training
        self.student.model.eval()
        requests = [
            GenerationRequest(self.prompts[sample.prompt_id], number) for number, sample in samples
        ]
        # A student in training is in this process alone, whatever backend decodes for the run.
        backend = open_backend("transformers", self.student.base, Limits(len(requests)))
        made = backend.generate(requests, self.sampling, seed=self.seed, control=self.control)
        self.student.model.train(was_training)
        return list(made.rollouts)


def on_policy_batches(
    samples: Sequence[Rollout],
    engine: TrainEngine,
    start: int,
    config: BatchConfig,
    by_teacher: Iterator[list[SequenceBatch]],
    sampling: StudentSampling,
) -> Iterator[list[SequenceBatch]]:
    """The teacher's batches, a share of them replaced by the student's answers to their prompts.

    A batch is sampled when it is asked for, from the weights of that step: a fit that is resumed there
    samples the same. Collective.

    Args:
        samples: Those that ``by_teacher`` is made of.
        engine: Holds the student.
        start: Step (0-based) of the first batch.
        config: As for ``by_teacher``.
        by_teacher: The teacher's batches from ``start`` on.
        sampling: How the student answers.
    """
    for step, batch in enumerate(batch_indices(samples, start, config), start=start):
        given = next(by_teacher)
        if not sampling.takes(step):
            yield given
            continue
        numbered = {index: step * config.batch_size + place for place, index in enumerate(batch)}
        parts = [
            sampling.answer([(numbered[i], samples[i]) for i in part])
            for part in parts_of(batch, engine)
        ]
        made, replay = [sample for part in parts for sample in part], sampling.replay
        counts = [num_tokens(made), 0 if replay is None else num_points(made, replay)]
        num_targets, count = engine.world.sum(torch.tensor(counts, dtype=torch.double)).tolist()
        yield [
            dataclasses.replace(
                batch_of_part,
                points=None if replay is None else replay.points_of(own, count=int(count)),
                by_student=True,
            )
            for own, batch_of_part in (
                collate_part(part, samples[batch[0]], config, int(num_targets)) for part in parts
            )
        ]
