"""Peak memory and step time of distillation on a real vocabulary; `distill.py --model` prints it.

Every side runs in processes of its own that take turns, on one thread: the same token ids in the same
batch at every step, LoRA of one rank on every linear layer, one optimizer, one dtype. Memory is the most that was
resident in the steps that are counted, over what was before the first of them. Time is the processor's,
which other work on the machine changes little, and a ratio is taken within a turn.

``whole`` is the plain definition, for scale: logits of every position, in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.distill.objective import DistillLoss
from stir_train.distill.samples import BatchConfig, SequenceBatch, sequence_batches
from stir_train.distributed.engine import PlainEngine
from stir_train.distributed.world import alone
from stir_train.models.load import load_model
from stir_train.models.lora import make_whole_student
from stir_train.train.loop import FitPlan, Loss, StepRecord, fit
from stir_train.types.rollout import Rollout

RANK, ALPHA, RATE = 16, 32, 1e-4
PROMPT_TOKENS = 64
SIDES = ("stir_train", "SFTTrainer", "whole")


def main() -> None:
    """One side, as `table` starts it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--response-tokens", type=int, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    samples = made_up(chosen.batch_size, chosen.response_tokens)
    watch = Watch()
    dtype = getattr(torch, chosen.dtype)
    if chosen.side == "SFTTrainer":
        trl_steps(chosen.model, dtype, samples, chosen.steps, watch)
    else:
        our_steps(chosen.model, dtype, samples, chosen.steps, watch, whole=chosen.side == "whole")
    print(json.dumps(watch.result()))


def table(
    model: str, *, dtype: str, steps: int, batch_size: int, response_tokens: int, repeats: int
) -> None:
    """Run every side in turns and print them side by side."""
    print(
        f"{Path(model).name}, LoRA rank {RANK}, {dtype}, {batch_size} sequences of {PROMPT_TOKENS} prompt "
        f"and up to {response_tokens} response tokens, {steps} steps, one thread, {repeats} turns"
    )
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--model", model]
            command += ["--dtype", dtype, "--steps", str(steps), "--batch-size", str(batch_size)]
            command += ["--response-tokens", str(response_tokens)]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[side].append(json.loads(run.stdout.splitlines()[-1]))
    print(f"{'':12} {'GiB added':>10} {'processor s a step':>19} {'of stir_train':>14} {'loss':>8}")
    for side, turns in found.items():
        memory = statistics.median(turn["added_gib"] for turn in turns)
        seconds = statistics.median(turn["seconds"] for turn in turns)
        ratio = statistics.median(
            turn["seconds"] / own["seconds"]
            for turn, own in zip(turns, found["stir_train"], strict=True)
        )
        print(f"{side:12} {memory:10.2f} {seconds:19.1f} {ratio:14.2f} {turns[0]['loss']:8.4f}")


class Watch:
    """Memory and time of the steps after the first, which the optimizer's state and caches are made in."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._losses: list[float] = []
        self._start = 0.0
        self._before_kib = 0

    def begin(self) -> None:
        """The model is there, and nothing of a batch."""
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts from here
        self._before_kib = _status_kib("VmRSS")
        self._start = time.process_time()

    def end_step(self, loss: float) -> None:
        """A step is done."""
        now = time.process_time()
        self._seconds.append(now - self._start)
        self._losses.append(loss)
        self._start = now

    def result(self) -> dict[str, float]:
        """GiB at the peak over those before, processor seconds of a step, the first loss."""
        return {
            "added_gib": (_status_kib("VmHWM") - self._before_kib) / 2**20,
            "seconds": statistics.median(self._seconds[1:]),
            "loss": self._losses[0],
        }


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def made_up(count: int, response_tokens: int) -> list[Rollout]:
    """Random tokens, whose values matter neither to memory nor to time, in responses of half the length and more."""
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(1000, 40_000, (length,), generator=generator).tolist())

    lengths = torch.linspace(response_tokens / 2, response_tokens, count).round().int().tolist()
    return [
        Rollout(str(i), 0, tokens(PROMPT_TOKENS), tokens(length), (), (), "stop")
        for i, length in enumerate(lengths)
    ]


def our_steps(
    model: str, dtype: torch.dtype, samples: list[Rollout], steps: int, watch: Watch, *, whole: bool
) -> None:
    """The sequence objective, or the same by its plain definition."""
    student = make_whole_student(
        ModelConfig(name=model, device="cpu"), DistillConfig(rank=RANK, alpha=ALPHA), seed=0
    )
    student.model.to(dtype).train()
    trainable = [p for p in student.model.parameters() if p.requires_grad]
    engine = PlainEngine(student.model, [torch.optim.AdamW(trainable, lr=RATE)], alone())
    ours = DistillLoss(student.model, student, ObjectiveConfig())
    loss_of: Callable[[SequenceBatch], Loss] = ours
    if whole:
        loss_of = lambda batch: _whole_loss(student.model, batch)  # noqa: E731
    else:
        assert ours.head.rows_at_once, "its check is not part of a step"

    def on_step(record: StepRecord) -> None:
        watch.end_step(record.loss)

    watch.begin()
    fit(
        engine,
        lambda start: sequence_batches(samples, engine, start, BatchConfig(len(samples), 0, 0)),
        loss_of,
        FitPlan(num_steps=steps + 1, schedule=lambda _: 1.0, seed=0, on_step=on_step),
    )


def _whole_loss(model: Any, batch: SequenceBatch) -> torch.Tensor:
    logits = model(input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False).logits
    labels = batch.labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels)


def trl_steps(
    model: str, dtype: torch.dtype, samples: list[Rollout], steps: int, watch: Watch
) -> None:
    """TRL's supervised fine-tuning, with its defaults."""
    loaded = load_model(ModelConfig(name=model, device="cpu", dtype="float32"))
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    student = get_peft_model(loaded.model, lora).to(dtype)
    rows = [
        {
            "input_ids": [*s.prompt_token_ids, *s.token_ids],
            "completion_mask": [0] * len(s.prompt_token_ids) + [1] * len(s.token_ids),
        }
        for s in samples
    ]

    class Watching(TrainerCallback):  # type: ignore[misc]
        """Tells when steps begin and end."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            """Nothing of a batch is there."""
            watch.begin()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            """A step is done, and its loss is known."""
            if "loss" in logs:
                watch.end_step(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as scratch:
        settings = SFTConfig(
            output_dir=scratch,
            max_steps=steps + 1,
            per_device_train_batch_size=len(samples),
            learning_rate=RATE,
            lr_scheduler_type="constant",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            max_length=None,
            seed=0,
            completion_only_loss=True,
        )
        SFTTrainer(
            model=student,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            callbacks=[Watching()],
        ).train()


if __name__ == "__main__":
    main()
