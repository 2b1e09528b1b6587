"""What the tests of distillation share: a teacher, its rollouts, a student, an engine."""

from __future__ import annotations

from functools import cache

import torch

from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.config.steering import ValueSteering
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.distill.objective import DistillLoss
from stir_train.distill.replay import ControlPoints, RecordedImpulses, Replay
from stir_train.distill.samples import (
    IGNORED,
    BatchConfig,
    SequenceBatch,
    sequence_batches,
)
from stir_train.distributed.engine import PlainEngine
from stir_train.distributed.world import alone
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.controller import Steering
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel
from stir_train.models.lora import Student, make_whole_student
from stir_train.steering.controller import BasisController
from stir_train.types.rollout import Prompt, Rollout
from tests.support import bases

LOGITS = ObjectiveConfig(sequence=0.0, logits=1.0, beta=0.0)
STATES = ObjectiveConfig(sequence=0.0, states=1.0)


INSTRUCTION = "Easy, just add."
"""Words that the embedded model knows."""
CONCISE = ObjectiveConfig(
    samples="unverified", sequence=0.0, logits=1.0, beta=1.0, on_policy=1.0, instruction=INSTRUCTION
)


def value_teacher() -> BasisController:
    """Decides by states of two blocks."""
    settings = ValueSteering(strength=3.0, doubt=0.0)
    return BasisController(bases.basis(), settings, block=bases.BLOCK, head=bases.value_head())


@cache
def fresh_student() -> Student:
    student = make_whole_student(
        ModelConfig(name="embedded/addition"), DistillConfig(rank=8), seed=0
    )
    student.model.eval()
    return student


def plain_engine(num_parts: int = 1) -> PlainEngine:
    model = fresh_student().model
    trainable = [p for p in model.parameters() if p.requires_grad]
    return PlainEngine(model, [torch.optim.AdamW(trainable)], alone(), num_parts=num_parts)


def batch_of(
    samples: list[Rollout], num_parts: int = 1, replay: Replay | None = None
) -> list[SequenceBatch]:
    batching = BatchConfig(len(samples), pad_token_id=0, seed=0)
    return next(
        sequence_batches(samples, plain_engine(num_parts), 0, batching, replay or recorded())
    )


def recorded() -> RecordedImpulses:
    """The steered teacher by its record."""
    return RecordedImpulses(bases.basis().directions, bases.BLOCK)


def loss_of(objective: ObjectiveConfig) -> DistillLoss:
    return DistillLoss(fresh_student().model, fresh_student(), objective)


def label_logprobs(logits: torch.Tensor, batch: SequenceBatch) -> torch.Tensor:
    """Of the labels, in order."""
    labels = batch.labels[batch.labels != IGNORED]
    return logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]


def rollouts_under(
    steering: Steering,
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
) -> list[Rollout]:
    """Sampled completions under controllers."""
    result = DecodeEngine(loaded, max_rows=12).generate(
        [GenerationRequest(prompt) for prompt in prompts[:12]],
        SamplingParams(96, loaded.stop_token_ids, temperature=0.7, top_p=0.95),
        seed=0,
        control=ControlSpec(automaton, bases.MAX_POINTS),
        controller=steering,
    )
    return list(result.rollouts)


def steered_rollouts(
    loaded: LoadedModel, prompts: list[Prompt], automaton: ControlPointAutomaton
) -> list[Rollout]:
    """Sampled completions under a controller, most of them with impulses."""
    rollouts = rollouts_under(value_teacher(), loaded, prompts, automaton)
    assert sum(bool(r.impulses) for r in rollouts) >= 8
    assert any(len(r.control_points) > len(r.impulses) for r in rollouts)
    return rollouts


def points_that_moved(points: ControlPoints) -> torch.Tensor:
    """Which control points something was added at."""
    edited = {
        place
        for edit in points.plan.edits
        for place in zip(edit.rows.tolist(), edit.columns.tolist(), strict=True)
    }
    return torch.tensor([place in edited for place in places_of_points(points)])


def places_of_points(points: ControlPoints) -> list[tuple[int, int]]:
    return list(zip(points.rows.tolist(), points.columns.tolist(), strict=True))
