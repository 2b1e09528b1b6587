"""Fit LoRA for a few steps on made-up sequences, under any engine; a program for `start_ranks`.

fit_ranks.py OUTPUT.safetensors TRAIN_CONFIG_JSON [CHECKPOINT_DIRECTORY [STOP_AT_STEP]]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig, ObjectiveConfig, TrainConfig
from stir_train.distill.objective import DistillLoss
from stir_train.distill.replay import RecordedImpulses, steered_block
from stir_train.distill.samples import BatchConfig, sequence_batches
from stir_train.distributed.engine import open_engine
from stir_train.distributed.world import open_world
from stir_train.models.lora import make_whole_student
from stir_train.models.output_head import LOGITS_AT_ONCE
from stir_train.train.checkpoint import CheckpointFile
from stir_train.train.loop import FitPlan, StepRecord, fit, warmup_then_cosine
from stir_train.types.rollout import Impulse, Rollout

NUM_STEPS, NUM_SAMPLES = 8, 11
OBJECTIVE = ObjectiveConfig(logits=1.0, states=1.0)
CHUNK_LOGITS = 16 * 65
"""Several ranks take the loss in chunks of so many, one process takes it whole: they must agree."""


def sample(index: int) -> Rollout:
    """A made-up completion of its own length."""
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randint(3, 60, (12 + 3 * index,), generator=generator).tolist()
    return Rollout(
        prompt_id=str(index),
        sample=0,
        prompt_token_ids=tuple(tokens[:5]),
        token_ids=tuple(tokens[5:]),
        logprobs=(0.0,) * (len(tokens) - 5),
        control_points=(2, 5),
        finish_reason="stop",
        impulses=(Impulse(5, 3, 0, 0.5),),
        preview_tokens=0,
        forward_passes=1,
    )


def main(output: Path, config: TrainConfig, checkpoints: Path | None, stop_at: int | None) -> None:
    """Fit and save what was learned, with the losses."""
    torch.set_num_threads(1)
    distill = DistillConfig(rank=8, alpha=16, learning_rate=5e-3, dropout=0.0)
    with open_world() as world:
        student = make_whole_student(ModelConfig(name="embedded/addition"), distill, seed=0)
        trainable = [p for p in student.model.parameters() if p.requires_grad]
        engine = open_engine(
            student.model,
            torch.optim.AdamW(trainable, lr=5e-3, weight_decay=0.01),
            config,
            world,
        )

        def on_step(record: StepRecord) -> None:
            if record.step == stop_at and world.rank == world.size - 1:
                os.kill(os.getpid(), signal.SIGUSR1)

        generator = torch.Generator().manual_seed(99)
        directions = torch.randn(1, student.base.identity.width, generator=generator)
        samples = [sample(index) for index in range(NUM_SAMPLES)]
        replay = RecordedImpulses(directions, steered_block(samples))
        student.model.train()
        fitted = fit(
            engine,
            lambda step: sequence_batches(samples, engine, step, BatchConfig(5, 0, seed=0), replay),
            DistillLoss(
                engine.module,
                student,
                OBJECTIVE,
                logits_at_once=CHUNK_LOGITS if world.size > 1 else LOGITS_AT_ONCE,
            ),
            FitPlan(
                num_steps=NUM_STEPS,
                schedule=warmup_then_cosine(NUM_STEPS, warmup_steps=2),
                seed=0,
                checkpoints=checkpoints and CheckpointFile(checkpoints, 100, "test"),
                on_step=on_step,
            ),
        )
        learned = engine.parameters()
        learned["losses"] = torch.tensor(fitted.losses)
        if world.is_main:
            save_file(learned, output)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        Path(arguments[0]),
        TrainConfig.model_validate(json.loads(arguments[1])),
        Path(arguments[2]) if len(arguments) > 2 else None,
        int(arguments[3]) if len(arguments) > 3 else None,
    )
