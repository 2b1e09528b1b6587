"""What a student is taught in a run: by which completions, in which batches, until when."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch

from stir_train.answering.methods import GREEDY, settings_label
from stir_train.config.learning import ObjectiveConfig
from stir_train.data.prompts import Wording, knows, reword
from stir_train.distill.objective import DistillLoss
from stir_train.distill.on_policy import StudentSampling, on_policy_batches
from stir_train.distill.plan import StudentSpec
from stir_train.distill.replay import DecidedAgain, RecordedImpulses, Replay, steered_block
from stir_train.distill.samples import (
    BatchConfig,
    SequenceBatch,
    choose_samples,
    compared_samples,
    sequence_batches,
    unverified_samples,
)
from stir_train.distill.terms import replays_steering
from stir_train.distill.validation import validation_loss
from stir_train.distributed.engine import TrainEngine
from stir_train.errors import StageError
from stir_train.generation.controller import previewing
from stir_train.models.lora import Student
from stir_train.runtime.answerers import control_spec, controller_for
from stir_train.runtime.context import RunContext
from stir_train.runtime.directions import advantages_of
from stir_train.runtime.generation import sampling_params
from stir_train.runtime.search import load_parts
from stir_train.stores.rollouts import RolloutStore
from stir_train.train.loop import EarlyStopping
from stir_train.types.rollout import Rollout


def samples_of(context: RunContext, objective: ObjectiveConfig) -> list[Rollout]:
    """Completions of harvest problems: right and short ones, steered or plain, or plain ones as they come or compared."""
    config = context.config.distill
    source = "steer" if objective.samples == "steered" else "rollout"
    graded = RolloutStore(context.stage(source)).require_complete().read()
    if objective.samples == "unverified":
        return unverified_samples(graded, keep_per_prompt=config.keep_per_prompt)
    if objective.samples == "compared":
        return compared_samples(graded, advantages_of(context, graded).by_rollout)
    return choose_samples(
        graded, keep_per_prompt=config.keep_per_prompt, hard_below=config.hard_below
    )


def student_batches(
    context: RunContext, spec: StudentSpec, student: Student, engine: TrainEngine, start: int
) -> Iterator[list[SequenceBatch]]:
    """This rank's parts of every batch of a spec from step ``start`` on."""
    batching = dataclasses.replace(
        _batching(context, student), instructed=instructed_prompts(context, spec.objective)
    )
    if spec.objective.samples == "compared":
        graded = RolloutStore(context.stage("rollout")).read()
        worth = advantages_of(context, graded).by_rollout
        batching = dataclasses.replace(batching, advantages=worth)
    replay = _replay(context, spec, student) if replays_steering(spec.objective) else None
    by_teacher = sequence_batches(spec.samples, engine, start, batching, replay)
    if not spec.objective.on_policy:
        return by_teacher
    sampling = _student_sampling(context, spec, student)
    return on_policy_batches(spec.samples, engine, start, batching, by_teacher, sampling)


def instructed_prompts(
    context: RunContext, objective: ObjectiveConfig
) -> Mapping[str, tuple[int, ...]] | None:
    """By id, what the teacher reads of every harvest problem; None if it is given no instruction.

    Raises:
        StageError: If the vocabulary lacks words of the instruction, or it leaves no room for a completion.
    """
    if not (instruction := objective.instruction):
        return None
    described = context.resources.described
    named = f"distill.objective.instruction: {instruction!r}"
    if not knows(described.tokenizer, instruction):
        raise StageError(f"{named} has words that the model's vocabulary lacks; use others")
    worded = reword(
        context.splits["harvest"],
        Wording(instruction=instruction),
        context.config.task,
        described.tokenizer,
    )
    longest = max(len(prompt.token_ids) for prompt in worded)
    if longest + context.config.generation.max_new_tokens > described.max_tokens:
        raise StageError(
            f"{named} makes a prompt of {longest} tokens, which leaves no room for "
            f"generation.max_new_tokens in the model's context of {described.max_tokens}; say it shorter"
        )
    return {prompt.prompt_id: prompt.token_ids for prompt in worded}


def _replay(context: RunContext, spec: StudentSpec, student: Student) -> Replay:
    """How the steered teacher is had again: from the record, or, of what is in no basis, by the controller."""
    if any(impulse.entry < 0 for sample in spec.samples for impulse in sample.impulses):
        return _decided_again(context, student)
    width = context.resources.described.identity.width
    entries = (
        context.steering.basis().directions if context.config.needs_basis else torch.zeros(0, width)
    )
    return RecordedImpulses(entries, steered_block(spec.samples))


def _decided_again(context: RunContext, student: Student) -> DecidedAgain:
    """The chosen controller, asked in the teacher's pass.

    Raises:
        StageError: If it has to preview.
    """
    choice = context.steering.choice()
    controller = controller_for(context, choice, device=student.base.device)
    if previewing(controller) is not None:
        raise StageError(
            f"distill.objective: the chosen controller ({choice.mode}) previews before it acts, and "
            "cannot judge a finished completion in one pass; tune among value, similarity, static and vector"
        )
    return DecidedAgain(controller, control_spec(context).max_points, student.base.device)


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
        replay=_decided_again(context, student) if replays_steering(spec.objective) else None,
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
    plain = spec.objective.samples != "steered" or choice.mode == "none"
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
