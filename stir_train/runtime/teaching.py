"""What a student is taught in a run: by which completions, in which batches, until when."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.answering.methods import GREEDY, settings_label
from stir_train.config.learning import ObjectiveConfig
from stir_train.distill.objective import DistillLoss
from stir_train.distill.on_policy import StudentSampling, on_policy_batches
from stir_train.distill.plan import StudentSpec
from stir_train.distill.samples import (
    BatchConfig,
    SequenceBatch,
    choose_samples,
    sequence_batches,
)
from stir_train.distill.terms import needs_teacher
from stir_train.distill.validation import validation_loss
from stir_train.distributed.engine import TrainEngine
from stir_train.errors import StageError
from stir_train.generation.controller import previewing
from stir_train.models.lora import Student
from stir_train.runtime.answerers import control_spec, controller_for
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import sampling_params
from stir_train.runtime.search import load_parts
from stir_train.stores.rollouts import RolloutStore
from stir_train.train.loop import EarlyStopping
from stir_train.types.rollout import Rollout


def samples_of(context: RunContext, objective: ObjectiveConfig) -> list[Rollout]:
    """Right and short completions of harvest problems, steered or plain."""
    config = context.config.distill
    source = "rollout" if objective.samples == "plain" else "steer"
    return choose_samples(
        RolloutStore(context.stage(source)).require_complete().read(),
        keep_per_prompt=config.keep_per_prompt,
        hard_below=config.hard_below,
    )


def student_batches(
    context: RunContext, spec: StudentSpec, student: Student, engine: TrainEngine, start: int
) -> Iterator[list[SequenceBatch]]:
    """This rank's parts of every batch of a spec from step ``start`` on."""
    batching = _batching(context, student)
    directions = _entries(context) if needs_teacher(spec.objective) else None
    by_teacher = sequence_batches(spec.samples, engine, start, batching, directions)
    if not spec.objective.on_policy:
        return by_teacher
    sampling = _student_sampling(context, spec, student)
    return on_policy_batches(spec.samples, engine, start, batching, by_teacher, sampling)


def _entries(context: RunContext) -> Float[Tensor, "K D"]:
    """What impulses are multiples of; nothing in a run without a basis."""
    if context.config.needs_basis:
        return context.steering.basis().directions
    return torch.zeros(0, context.resources.described.identity.width)


def _batching(context: RunContext, student: Student) -> BatchConfig:
    config = context.config
    return BatchConfig(
        config.distill.batch_size,
        student.base.pad_token_id,
        config.seed,
        config.distill.bucket_batches,
    )


def _student_sampling(context: RunContext, spec: StudentSpec, student: Student) -> StudentSampling:
    """How the student answers in training, and who judges.

    Raises:
        StageError: If the teacher has to preview, or no process holds the student whole.
    """
    choice = context.steering.choice()
    controller = controller_for(context, choice)
    if previewing(controller) is not None:
        raise StageError(
            f"distill.objective.on_policy: the chosen controller ({choice.mode}) previews before it "
            "acts, and cannot judge a finished completion in one pass; tune among value, similarity "
            "and static"
        )
    if context.config.train.zero_stage == 3 and context.world.size > 1:
        raise StageError(
            "distill.objective.on_policy: every process samples from the student by itself, and "
            "train.zero_stage=3 holds no whole one; use a stage below 3"
        )
    return StudentSampling(
        student=student,
        prompts={prompt.prompt_id: prompt for prompt in context.splits["harvest"]},
        sampling=sampling_params(context, greedy=False),
        control=control_spec(context),
        controller=controller,
        seed=context.config.seed,
        share=spec.objective.on_policy,
    )


def early_stopping(
    context: RunContext, spec: StudentSpec, student: Student, engine: TrainEngine
) -> EarlyStopping | None:
    """Validate on the tune split's right answers: the chosen controller's, or plain greedy ones.

    Raises:
        StageError: If none is right.
    """
    config = context.config.distill
    if config.patience is None:
        return None
    choice = context.steering.choice()
    plain = spec.objective.samples == "plain" or choice.mode == "none"
    tune = context.stage("tune")
    answers = RolloutStore(tune).read(GREEDY) if plain else load_parts(tune, settings_label(choice))
    right = [item.rollout for item in answers if item.grade.correct]
    if not right:
        raise StageError(
            "distill.patience: no answer on the tune split is right, so there is nothing to validate "
            "on; leave patience out"
        )
    batching = _batching(context, student)
    loss = DistillLoss(engine.module, student, ObjectiveConfig())
    return EarlyStopping(
        lambda: validation_loss(loss, right, batching), config.validate_every_steps, config.patience
    )
