"""Distillation side by side with TRL, tokens learned from a second; every ratio is from one run.

Usage: ``python benchmarks/distill.py [--steps N] [--repeats N]``, or with ``--model DIR`` peak memory and
step time on a real vocabulary (`distill_model.py`). TRL is no dependency: install it for
this alone, as in ``pip install --no-deps trl==1.16.0``. Same embedded model, LoRA on every linear layer,
batches of the same completions, float32, one optimizer; variants take turns, and a ratio is the median
of the ratios within a turn, with their range.

``sequence`` against ``SFTTrainer``: cross-entropy of completion tokens. ``on_policy`` against
``GKDTrainer`` with every batch sampled by the student (lambda 1, beta 0.5): tokens sampled, judged and
learned from. Our teacher is the base under a controller, theirs a second copy of the base.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import distill_model
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from stir_train.config.inputs import ModelConfig, TaskConfig
from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.config.stages import ControlPointConfig
from stir_train.config.steering import SimilaritySteering
from stir_train.data.control_points import ControlPointAutomaton, build_automaton
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import render_prompts
from stir_train.distill.objective import DistillLoss
from stir_train.distill.on_policy import StudentSampling, on_policy_batches
from stir_train.distill.samples import BatchConfig, sequence_batches
from stir_train.distributed.engine import PlainEngine
from stir_train.distributed.world import alone
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import load_model
from stir_train.models.lora import make_whole_student
from stir_train.steering.controller import BasisController
from stir_train.tasks.families import FAMILIES
from stir_train.tasks.problem import held_out_problems
from stir_train.train.loop import FitPlan, fit
from stir_train.types.rollout import Prompt, Rollout
from stir_train.types.steering import ControlBasis

MODEL = ModelConfig(name="embedded/addition")
LORA = DistillConfig(rank=16, alpha=32)
NUM_PROMPTS, BATCH_SIZE, BUDGET, RATE = 256, 16, 128, 1e-3


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--model", help="directory of a real model: the table of memory, alone")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--response-tokens", type=int, default=256)
    arguments = parser.parse_args()
    if arguments.model:
        distill_model.table(
            arguments.model,
            dtype=arguments.dtype,
            steps=arguments.steps or 2,
            batch_size=arguments.batch_size,
            response_tokens=arguments.response_tokens,
            repeats=arguments.repeats or 3,
        )
        return
    steps, repeats = arguments.steps or 32, arguments.repeats or 5
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    setup = make_setup()
    print(
        f"embedded/addition, LoRA rank {LORA.rank}, batches of {BATCH_SIZE}, {steps} steps, "
        f"one thread, {repeats} turns"
    )
    for title, ours, theirs in (
        ("sequence / SFTTrainer", our_sequence, trl_sequence),
        ("on_policy / GKDTrainer", our_on_policy, trl_on_policy),
    ):
        compare(title, ours, theirs, setup, steps, repeats)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What both sides are given."""

    prompts: list[Prompt]
    samples: list[Rollout]
    automaton: ControlPointAutomaton
    sampling: SamplingParams
    basis: ControlBasis


Run = Callable[[Setup, int], tuple[int, float]]
"""Trains for some steps; tokens learned from, and seconds."""


def make_setup() -> Setup:
    """Sampled completions of the embedded task, and a basis of random vectors."""
    loaded = load_model(MODEL)
    problems = held_out_problems(FAMILIES["addition"], NUM_PROMPTS, seed=3)
    sources = [SourceProblem(p.question, p.answer, p.content, p.kind) for p in problems]
    prompts = render_prompts(sources, TaskConfig(), loaded.tokenizer)
    size = loaded.model.config.vocab_size
    automaton = build_automaton(loaded.tokenizer, ControlPointConfig(), vocab_size=size)
    sampling = SamplingParams(BUDGET, loaded.stop_token_ids, temperature=0.7, top_p=0.95)
    made = DecodeEngine(loaded, max_rows=256).generate(
        [GenerationRequest(p) for p in prompts], sampling, seed=0, control=ControlSpec(automaton, 8)
    )
    generator = torch.Generator().manual_seed(0)
    entries = 64
    points = torch.arange(entries) % 8 + 1
    basis = ControlBasis(
        keys=torch.nn.functional.normalize(torch.randn(entries, 64, generator=generator), dim=-1),
        directions=torch.randn(entries, 64, generator=generator),
        quality=torch.ones(entries),
        points=points,
        blocks=torch.full((entries,), 4),
        is_anchor=torch.zeros(entries, dtype=torch.bool),
        saves_tokens=torch.zeros(entries, dtype=torch.bool),
        contrast=torch.arange(entries),
    )
    return Setup(prompts, list(made.rollouts), automaton, sampling, basis)


def our_sequence(setup: Setup, steps: int) -> tuple[int, float]:
    """The sequence objective."""
    student = make_whole_student(MODEL, LORA, seed=0)
    engine = _engine(student.model)
    batching = BatchConfig(BATCH_SIZE, 0, seed=0)
    tokens = 0

    def batches(start: int) -> Any:
        nonlocal tokens
        for parts in sequence_batches(setup.samples, engine, start, batching):
            tokens += parts[0].num_targets
            yield parts

    seconds = _fit(engine, batches, DistillLoss(student.model, student, ObjectiveConfig()), steps)
    return tokens, seconds


def our_on_policy(setup: Setup, steps: int) -> tuple[int, float]:
    """The divergence from the steered teacher on the student's own samples."""
    student = make_whole_student(MODEL, LORA, seed=0)
    engine = _engine(student.model)
    batching = BatchConfig(BATCH_SIZE, 0, seed=0)
    objective = ObjectiveConfig(sequence=0.0, logits=1.0, on_policy=1.0)
    controller = BasisController(setup.basis, SimilaritySteering(strength=1.0), block=4)
    sampling = StudentSampling(
        student=student,
        prompts={p.prompt_id: p for p in setup.prompts},
        sampling=setup.sampling,
        control=ControlSpec(setup.automaton, 8),
        controller=controller,
        seed=0,
        share=1.0,
    )
    tokens = 0

    def batches(start: int) -> Any:
        nonlocal tokens
        given = sequence_batches(setup.samples, engine, start, batching)
        for parts in on_policy_batches(setup.samples, engine, start, batching, given, sampling):
            tokens += parts[0].num_targets
            yield parts

    seconds = _fit(engine, batches, DistillLoss(student.model, student, objective), steps)
    return tokens, seconds


def _engine(model: torch.nn.Module) -> PlainEngine:
    trainable = [p for p in model.parameters() if p.requires_grad]
    return PlainEngine(model, [torch.optim.AdamW(trainable, lr=RATE)], alone())


def _fit(engine: PlainEngine, batches: Any, loss: DistillLoss, steps: int) -> float:
    engine.module.train()
    start = time.perf_counter()
    fit(engine, batches, loss, FitPlan(num_steps=steps, schedule=lambda _: 1.0, seed=0))
    return time.perf_counter() - start


def trl_sequence(setup: Setup, steps: int) -> tuple[int, float]:
    """TRL's supervised fine-tuning on the same token ids."""
    rows = [_row(sample) for sample in setup.samples]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=_lora_model(),
            args=SFTConfig(**_trl_settings(scratch, steps), completion_only_loss=True),
            train_dataset=Dataset.from_list(rows),
            processing_class=load_model(MODEL).tokenizer,
        )
        learned = _counting_labels(trainer)
        start = time.perf_counter()
        trainer.train()
        return learned(), time.perf_counter() - start


def trl_on_policy(setup: Setup, steps: int) -> tuple[int, float]:
    """TRL's on-policy distillation from an unsteered copy."""
    base = load_model(MODEL)
    base.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    texts = {p.prompt_id: p.text for p in setup.prompts}
    rows = [
        {
            "messages": [
                {"role": "user", "content": texts[s.prompt_id]},
                {"role": "assistant", "content": base.decode(s.token_ids)},
            ]
        }
        for s in setup.samples
    ]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GKDTrainer(
            model=_lora_model(),
            teacher_model=base.model,
            args=GKDConfig(
                **_trl_settings(scratch, steps),
                lmbda=1.0,
                beta=0.5,
                temperature=0.7,
                max_new_tokens=BUDGET,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=base.tokenizer,
        )
        # Its sampler is told by the tokenizer where completions end.
        trainer.generation_config.eos_token_id = base.tokenizer.eos_token_id
        trainer.generation_config.top_p = 0.95
        learned = _counting_labels(trainer)
        start = time.perf_counter()
        trainer.train()
        return learned(), time.perf_counter() - start


def _counting_labels(trainer: Any) -> Callable[[], int]:
    """Count the labels of every batch that the loss is computed on."""
    counts: list[int] = []
    compute_loss = trainer.compute_loss

    def counting(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append(int((inputs["labels"] != -100).sum()))
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = counting
    return lambda: sum(counts)


def _row(sample: Rollout) -> dict[str, list[int]]:
    prompt, response = list(sample.prompt_token_ids), list(sample.token_ids)
    return {
        "input_ids": [*prompt, *response],
        "completion_mask": [0] * len(prompt) + [1] * len(response),
    }


def _lora_model() -> Any:
    config = LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(load_model(MODEL).model, config)


def _trl_settings(directory: str, steps: int) -> dict[str, Any]:
    return {
        "output_dir": directory,
        "max_steps": steps,
        "per_device_train_batch_size": BATCH_SIZE,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "max_length": None,
        "seed": 0,
    }


def compare(title: str, ours: Run, theirs: Run, setup: Setup, steps: int, repeats: int) -> None:
    """Take turns, and print tokens a second and their ratio."""
    rates: list[tuple[float, float]] = []
    for _ in range(repeats):
        turn = []
        for run in (ours, theirs):
            tokens, seconds = run(setup, steps)
            turn.append(tokens / seconds)
        rates.append((turn[0], turn[1]))
    ratios = sorted(own / other for own, other in rates)
    print(
        f"{title}: {_median([r[0] for r in rates]):,.0f} / {_median([r[1] for r in rates]):,.0f} "
        f"tokens a second, {_median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
