"""What a student is taught: by which completions, in which batches, and when it has learnt enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stir_train.config.learning import ObjectiveConfig
from stir_train.distill.objective import DistillLoss
from stir_train.distill.on_policy import StudentSampling, on_policy_batches
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
from stir_train.generation.backend import ControlSpec
from stir_train.generation.controller import previewing
from stir_train.models.lora import Student
from stir_train.recipes.tune import controller_for, tune_job
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import GenerationJob, load_answers, sampling_params
from stir_train.stores.rollouts import RolloutStore
from stir_train.train.loop import EarlyStopping
from stir_train.types.rollout import GradedRollout, Rollout


@dataclass(frozen=True)
class StudentSpec:
    """One student to train.

    Attributes:
        name: Empty for the student that is exported.
        objective: What it learns from.
        samples: Completions.
        num_steps: Optimizer steps.
    """

    name: str
    objective: ObjectiveConfig
    samples: list[Rollout]
    num_steps: int

    @property
    def prefix(self) -> str:
        """Where in the stage its adapter is."""
        return student_prefix(self.name)


def student_prefix(name: str) -> str:
    """Where in the stage a student's adapter is; the exported one has no name."""
    return f"also/{name}/" if name else ""


def plan_students(context: RunContext) -> list[StudentSpec]:
    """The exported student's spec, then the others', cut to as many tokens.

    Raises:
        StageError: If an objective has nothing to learn from, or cannot be held as configured.
    """
    config = context.config.distill
    samples = _samples_of(context, config.objective)
    specs = [StudentSpec("", config.objective, samples, config.num_steps)]
    for name, objective in config.also.items():
        others = _samples_of(context, objective)
        num_steps = round(config.num_steps * mean_tokens(samples) / mean_tokens(others))
        specs.append(StudentSpec(name, objective, others, max(1, num_steps)))
    return specs


def _samples_of(context: RunContext, objective: ObjectiveConfig) -> list[Rollout]:
    """Right and short completions, steered or plain."""
    plain = objective.samples == "plain"
    graded = (
        RolloutStore(context.stage("rollout")).require_complete().read()
        if plain
        else load_steered(context)
    )
    config = context.config.distill
    samples = choose_samples(
        graded, keep_per_prompt=config.keep_per_prompt, hard_below=config.hard_below
    )
    if not samples:
        raise StageError(f"no {objective.samples} rollout is correct: there is nothing to distil")
    return samples


def mean_tokens(samples: Sequence[Rollout]) -> float:
    """Mean length of completions."""
    return sum(len(sample.token_ids) for sample in samples) / len(samples)


def student_batches(
    context: RunContext, spec: StudentSpec, student: Student, engine: TrainEngine, start: int
) -> Iterator[list[SequenceBatch]]:
    """This rank's parts of every batch of a spec from step ``start`` on."""
    batching = _batching(context, student)
    directions = context.steering.basis().directions if needs_teacher(spec.objective) else None
    by_teacher = sequence_batches(spec.samples, engine, start, batching, directions)
    if not spec.objective.on_policy:
        return by_teacher
    sampling = _student_sampling(context, spec, student)
    return on_policy_batches(spec.samples, engine, start, batching, by_teacher, sampling)


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
    controller = controller_for(context, choice, context.steering.basis())
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
        control=ControlSpec(context.resources.automaton, context.config.control_points.max_points),
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
    job = tune_job(context, None if plain else choice, context.steering.basis())
    answers = load_answers(context, context.stage("tune"), job)
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


def steered_job(context: RunContext) -> GenerationJob:
    """Completions of harvest problems under the chosen controller."""
    choice, basis = context.steering.choice(), context.steering.basis()
    return GenerationJob(
        prompts=context.splits["harvest"],
        num_samples=context.config.distill.num_samples,
        sampling=sampling_params(context, greedy=False),
        make_controller=lambda: controller_for(context, choice, basis),
    )


def load_steered(context: RunContext) -> list[GradedRollout]:
    """Those that were made."""
    return load_answers(context, context.stage("steer"), steered_job(context))
