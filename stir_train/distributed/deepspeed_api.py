"""DeepSpeed, imported when something needs it: two seconds that a plain run need not wait."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import nn


def import_deepspeed() -> Any:
    """The library, quiet, and told which device it has."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or it warns that it had to guess
    import deepspeed  # noqa: PLC0415

    # DeepSpeed 0.19 calls what torch 2.13 renames; users can do nothing about it.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+_tensor` is dep", FutureWarning)

    deepspeed.utils.logger.setLevel("WARNING")
    # Compiled at the first use of a group of CPU ranks, for twenty seconds; gloo does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def zero3_inference_config(dtype: torch.dtype) -> dict[str, Any]:
    """What `deepspeed.initialize` needs to shard a frozen model's weights over all ranks."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "steps_per_print": 1 << 30,
    }


def shard_weights(model: nn.Module, config: dict[str, Any]) -> None:
    """Install the hooks that gather each layer's weights when its turn comes, and drop them after."""
    import_deepspeed().initialize(model=model, config=config)
