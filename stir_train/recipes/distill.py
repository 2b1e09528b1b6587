"""Steered rollouts on harvest problems, then LoRA on the good ones, then proof that it loads."""

from __future__ import annotations

import math

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.deepspeed import deepspeed_config
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.distill.objective import sequence_loss
from stir_train.distill.samples import BatchConfig, choose_samples, sequence_batches
from stir_train.distributed.engine import open_engine, peak_memory_gib
from stir_train.errors import StageError
from stir_train.export.adapter import ADAPTER_DIRECTORY, PROBES_FILE, save_adapter, save_probes
from stir_train.export.verify import VerificationResult, verify_adapter
from stir_train.models.load import resolve_model_path
from stir_train.models.lora import make_student, make_whole_student
from stir_train.monitoring.console import progress
from stir_train.recipes.context import RunContext
from stir_train.recipes.rollouts import (
    GenerationJob,
    generate_jobs,
    load_answers,
    sampling_params,
)
from stir_train.recipes.tune import TUNE, controller_for
from stir_train.recipes.validate import VALIDATE
from stir_train.recipes.value import VALUE
from stir_train.train.loop import FitPlan, FitResult, StepRecord, fit, warmup_then_cosine
from stir_train.types.rollout import GradedRollout, Rollout

STEERED, ADAPTER = STAGE_DIRECTORIES["steer"], STAGE_DIRECTORIES["distill"]
NUM_PROBES, PROBE_TOKENS = 4, 48
LOG_EVERY = 20


def run_steered(context: RunContext) -> None:
    """Sample completions of harvest problems under the chosen controller."""
    config = context.config
    settings = {
        "seed": config.seed,
        "num_threads": config.num_threads,
        "num_samples": config.distill.num_samples,
        "rollout": config.rollout,
        "generation": config.generation,
    }
    if not config.distill.enabled:
        return
    stage = context.begin(STEERED, settings, upstream=(VALIDATE, VALUE, TUNE), splits=("harvest",))
    if stage is None:
        return
    job = _steered_job(context)
    total = len(job.prompts) * job.num_samples
    with progress(context.console, "steered rollouts", total, "rollouts") as advance:
        generate_jobs(context, stage, [job], advance)
    if not context.is_worker:
        context.world.on_main("steered made", lambda: _finish_steered(context, stage))


def _finish_steered(context: RunContext, stage: StageDir) -> None:
    graded = _load_steered(context)
    correct = sum(g.grade.correct for g in graded) / len(graded)
    context.report_done(
        stage,
        {"num_rollouts": len(graded), "correct_rate": correct},
        f"{len(graded)} rollouts under {context.steering.choice().mode}, {correct:.1%} correct",
    )


def run_distill(context: RunContext) -> None:
    """Fine-tune LoRA on the chosen steered completions; export; verify in a fresh process."""
    config = context.config
    settings = {"distill": config.distill, "seed": config.seed, "num_threads": config.num_threads}
    if not config.distill.enabled:
        context.console.print("  adapter: distill.enabled is off")
        return
    stage = context.begin(ADAPTER, settings, upstream=(STEERED,))
    if stage is None:
        return
    samples = choose_samples(_load_steered(context), keep_per_prompt=config.distill.keep_per_prompt)
    if not samples:
        raise StageError("no steered rollout is correct: there is nothing to distil")
    # A second copy: the run's own model stays the frozen base.
    student = make_student(
        config.model,
        config.distill,
        seed=config.seed,
        world=context.world,
        deepspeed=deepspeed_config(config.train),
    )
    model = student.model
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.distill.learning_rate,
        weight_decay=config.distill.weight_decay,
    )
    engine = open_engine(model, optimizer, config.train, context.world)
    batching = BatchConfig(
        config.distill.batch_size, int(student.base.tokenizer.pad_token_id or 0), config.seed
    )
    model.train()
    with progress(context.console, "distill", config.distill.num_steps, "steps") as advance:

        def on_step(record: StepRecord) -> None:
            advance(1, f"loss {record.loss:.3f}")
            is_logged = record.step == 1 or record.step % LOG_EVERY == 0
            if is_logged and not math.isnan(record.grad_norm):  # of steps done before
                figures = {
                    "loss": record.loss,
                    "grad_norm": record.grad_norm,
                    "learning_rate": record.rate_factor * config.distill.learning_rate,
                    "memory_gib": peak_memory_gib(),
                }
                context.metrics.log(ADAPTER, figures, step=record.step)

        fitted = fit(
            engine,
            lambda step: sequence_batches(samples, engine, step, batching),
            lambda batch: sequence_loss(engine.module, batch),
            FitPlan(
                num_steps=config.distill.num_steps,
                schedule=warmup_then_cosine(
                    config.distill.num_steps, warmup_steps=config.distill.warmup_steps
                ),
                seed=config.seed,
                checkpoints=context.checkpoints(stage, "student"),
                on_step=on_step,
            ),
        )
    learnt = engine.parameters()
    context.world.on_main(
        "distilled", lambda: _export_and_verify(context, stage, samples, learnt, fitted)
    )


def _export_and_verify(
    context: RunContext,
    stage: StageDir,
    samples: list[Rollout],
    learnt: dict[str, torch.Tensor],
    fitted: FitResult,
) -> None:
    """Put what was learnt on a fresh student, whole whatever the engine did to the other; save it."""
    config = context.config
    model = make_whole_student(config.model, config.distill, seed=config.seed).model
    with torch.no_grad():
        for name, value in learnt.items():
            model.get_parameter(name).copy_(value)
    save_adapter(model, stage)
    sequences = [[*s.prompt_token_ids, *s.token_ids] for s in samples]
    longest = sorted(sequences, key=len)[-NUM_PROBES:]
    width = min(PROBE_TOKENS, min(map(len, longest)))
    save_probes(model, [s[:width] for s in longest], stage)
    verified = verify_adapter(
        resolve_model_path(config.model.name),
        stage.path / ADAPTER_DIRECTORY,
        stage.path / PROBES_FILE,
        tolerance=config.distill.logit_tolerance,
    )
    context.report_done(
        stage,
        {
            "num_samples": len(samples),
            "final_loss": sum(fitted.losses[-LOG_EVERY:]) / len(fitted.losses[-LOG_EVERY:]),
            "effect": verified.effect,
            "reload_difference": verified.difference,
        },
        f"{len(samples)} samples, {fitted.num_steps} steps; reloaded in a fresh process: "
        f"{verified.num_tensors} tensors, logits within {verified.difference:.1e} of the trainer's",
    )


def run_verify(context: RunContext) -> VerificationResult:
    """Verify a finished run's adapter again."""
    stage = context.stage(ADAPTER)
    stage.require_complete()
    for file in stage.files(ADAPTER_DIRECTORY):
        assert file.is_file()
    return verify_adapter(
        resolve_model_path(context.config.model.name),
        stage.path / ADAPTER_DIRECTORY,
        stage.file(PROBES_FILE),
        tolerance=context.config.distill.logit_tolerance,
    )


def _steered_job(context: RunContext) -> GenerationJob:
    choice, basis = context.steering.choice(), context.steering.basis()
    return GenerationJob(
        prompts=context.splits["harvest"],
        num_samples=context.config.distill.num_samples,
        sampling=sampling_params(context, greedy=False),
        make_controller=lambda: controller_for(context, choice, basis),
    )


def _load_steered(context: RunContext) -> list[GradedRollout]:
    return load_answers(context, context.stage(STEERED), _steered_job(context))
