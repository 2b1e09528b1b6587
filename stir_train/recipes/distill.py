"""LoRA on the good ones of the steered rollouts, then proof that it loads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.deepspeed import deepspeed_config
from stir_train.distill.objective import DistillLoss
from stir_train.distill.plan import StudentSpec, adapter_config, mean_tokens, plan_students
from stir_train.distributed.engine import TrainEngine, open_engine, peak_memory_gib
from stir_train.export.adapter import PROBES_FILE, save_adapter, save_probes
from stir_train.export.verify import verify_adapter
from stir_train.models.locate import locate_model
from stir_train.models.lora import Student, make_student, make_whole_student
from stir_train.monitoring.metrics import Pace
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.memory import return_freed_memory
from stir_train.runtime.teaching import early_stopping, samples_of, student_batches
from stir_train.runtime.upstream import students_taught
from stir_train.stores.adapters import ADAPTER_DIRECTORY
from stir_train.stores.reports import load_record, save_record
from stir_train.train.loop import FitPlan, FitResult, StepRecord, fit, warmup_then_cosine
from stir_train.types.reports import StudentFigures

NUM_PROBES, PROBE_TOKENS = 4, 48
LOG_EVERY = 20
FIGURES_FILE = "figures.json"


def run(context: RunContext, stage: StageDir) -> Finish:
    """Fine-tune LoRA on the chosen steered completions; export; verify in a fresh process."""
    specs = plan_students(
        context.config.distill,
        students_taught(context.run_dir, context.config),
        lambda objective: samples_of(context, objective),
    )
    context.resources.release_model()  # every student brings a copy of its own, its teacher's too
    taught = [_teach(context, stage, spec) for spec in specs]
    return lambda: _finish(specs, taught)


def _teach(context: RunContext, stage: StageDir, spec: StudentSpec) -> StudentFigures:
    """Train one student, save and verify it, unless it is there; its figures, on every rank."""
    config, name = context.config, spec.name or "student"
    done = f"{spec.prefix}{FIGURES_FILE}"
    if context.world.on_main(f"{name} is there", lambda: stage.has(done)):
        return _shared(context, name, lambda: load_record(stage.path / done, StudentFigures))
    student = make_student(
        config.model,
        adapter_config(config.distill, spec),
        seed=config.seed,
        world=context.world,
        deepspeed=deepspeed_config(config.train),
    )
    optimizer = torch.optim.AdamW(
        [p for p in student.model.parameters() if p.requires_grad],
        lr=config.distill.learning_rate,
        weight_decay=config.distill.weight_decay,
    )
    engine = open_engine(student.model, optimizer, config.train, context.world)
    if config.train.activation_checkpointing:
        student.recompute_activations()
    student.model.train()
    fitted = _fit(context, stage, spec, student, engine)
    learned = engine.parameters()
    # The whole student, and the process that checks it, bring models of their own.
    del student, optimizer, engine
    return_freed_memory()
    return _shared(
        context,
        f"{name} distilled",
        lambda: _export_and_verify(context, stage, spec, learned, fitted),
    )


def _shared(context: RunContext, what: str, make: Callable[[], StudentFigures]) -> StudentFigures:
    """Figures that rank 0 makes, on every rank."""
    return StudentFigures(**context.world.on_main(what, lambda: dataclasses.asdict(make())))


def _fit(
    context: RunContext, stage: StageDir, spec: StudentSpec, student: Student, engine: TrainEngine
) -> FitResult:
    """Take the spec's steps, from the last checkpoint on if there is one."""
    config, name = context.config, spec.name or "student"
    label, pace = f"distill {spec.name}".rstrip(), Pace()
    with context.progress(label, spec.num_steps, "steps") as advance:

        def on_step(record: StepRecord) -> None:
            advance(1, f"loss {record.loss:.3f}")
            if math.isnan(record.grad_norm):  # done before this process began
                return
            eta_seconds = pace.eta_seconds(spec.num_steps - record.step)
            if record.step in (1, spec.num_steps) or record.step % LOG_EVERY == 0:
                figures = {
                    "loss": record.loss,
                    **{f"loss/{term}": value for term, value in record.terms.items()},
                    "grad_norm": record.grad_norm,
                    "learning_rate": record.rate_factor * config.distill.learning_rate,
                    "memory_gib": peak_memory_gib(),
                    "eta_seconds": eta_seconds,
                }
                series = spec.prefix.rstrip("/")
                context.metrics.log("distill", figures, step=record.step, series=series)

        fitted = fit(
            engine,
            lambda step: student_batches(context, spec, student, engine, step),
            DistillLoss(engine.module, student, spec.objective),
            FitPlan(
                num_steps=spec.num_steps,
                schedule=warmup_then_cosine(
                    spec.num_steps, warmup_steps=config.distill.warmup_steps
                ),
                seed=config.seed,
                early_stopping=early_stopping(context, spec, student, engine),
                checkpoints=context.checkpoints(stage, name),
                on_step=on_step,
            ),
        )
        advance(spec.num_steps - fitted.num_steps)
    return fitted


def _export_and_verify(
    context: RunContext,
    stage: StageDir,
    spec: StudentSpec,
    learned: dict[str, torch.Tensor],
    fitted: FitResult,
) -> StudentFigures:
    """Put what was learned on a fresh student, whole whatever the engine did to the other; save it."""
    config = context.config
    adapter = adapter_config(config.distill, spec)
    model = make_whole_student(config.model, adapter, seed=config.seed).model
    with torch.no_grad():
        for name, value in learned.items():
            model.get_parameter(name).copy_(value)
    save_adapter(model, stage, prefix=spec.prefix)
    sequences = [[*s.prompt_token_ids, *s.token_ids] for s in spec.samples]
    longest = sorted(sequences, key=len)[-NUM_PROBES:]
    width = min(PROBE_TOKENS, min(map(len, longest)))
    save_probes(model, [s[:width] for s in longest], stage, prefix=spec.prefix)
    del model
    return_freed_memory()  # before a fresh process loads its own
    base_path, gguf_file = locate_model(config.model)
    verified = verify_adapter(
        base_path,
        stage.path / spec.prefix / ADAPTER_DIRECTORY,
        stage.path / spec.prefix / PROBES_FILE,
        tolerance=config.distill.logit_tolerance,
        gguf_file=gguf_file,
    )
    tail = fitted.losses[-LOG_EVERY:]
    num_tokens = fitted.num_steps * config.distill.batch_size * mean_tokens(spec.samples)
    figures = StudentFigures(
        num_samples=len(spec.samples),
        num_steps=fitted.num_steps,
        num_tokens=round(num_tokens),
        final_loss=sum(tail) / len(tail),
        best_step=fitted.best_step or fitted.num_steps,
        num_tensors=verified.num_tensors,
        effect=verified.effect,
        reload_difference=verified.difference,
    )
    save_record(stage, f"{spec.prefix}{FIGURES_FILE}", figures)
    saved = stage.path / spec.prefix / ADAPTER_DIRECTORY
    context.metrics.directory("distill", f"{spec.name or 'student'}-adapter", saved)
    return figures


def _finish(specs: Sequence[StudentSpec], taught: Sequence[StudentFigures]) -> Outcome:
    own, *others = taught
    summary: dict[str, object] = {}
    for spec, figures in zip(specs, taught, strict=True):
        prefix = f"{spec.name}/" if spec.name else ""
        summary |= {f"{prefix}{k}": v for k, v in dataclasses.asdict(figures).items()}
    called = f"{specs[0].name}: " if specs[0].name else ""
    more = f"; also {', '.join(spec.name for spec in specs[1:])}" if others else ""
    return Outcome(
        summary,
        f"{called}{own.num_samples} samples, {own.num_steps} steps; reloaded in a fresh process: "
        f"{own.num_tensors} tensors, logits within {own.reload_difference:.1e} of the trainer's{more}",
    )
