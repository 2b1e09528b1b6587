"""How `stir-train init` shares a machine's cores and memory out among the processes of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stir_train.config.commented import Decision
from stir_train.config.load import parse_config
from stir_train.config.run import RunConfig
from stir_train.distributed.launch import usable_cores
from stir_train.launch.estimate import GIB, ModelShape, estimate

MEMORY_SHARE = 0.8
"""Of a machine's memory, what all processes together may take."""
MAX_PROCESSES = 8
LEAST_GIB = 3.0
"""What a process takes beside the weights and their copy in float32, laid out for products."""
PACKED_BYTES = 4
MIN_BATCH_TOKENS = 256


@dataclass(frozen=True)
class Machine:
    """What each process gets.

    Attributes:
        num_processes: On this machine.
        num_threads: Of each.
        memory_bytes: For each.
    """

    num_processes: int
    num_threads: int
    memory_bytes: int


def share_out(device: torch.device, shape: ModelShape, *, is_embedded: bool) -> Machine:
    """One process a GPU; on a CPU as many as there are cores and memory for, up to `MAX_PROCESSES`.

    Products of a decode step are small: two threads on one of them wait for each other, two processes do not.
    """
    if device.type == "cuda":
        return Machine(1, 1, int(torch.cuda.get_device_properties(device).total_memory))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = usable_cores()
    if is_embedded:
        return Machine(1, cores, memory)
    each = shape.num_params * (shape.bytes_per_weight + PACKED_BYTES) + LEAST_GIB * GIB
    fitting = int(MEMORY_SHARE * memory / each)
    processes = max(1, min(cores, fitting, MAX_PROCESSES))
    return Machine(processes, cores // processes, memory // processes)


def fitting_decisions(
    machine: Machine, shape: ModelShape, decisions: Sequence[Decision], *, on_gpu: bool
) -> Iterator[Decision]:
    """Even shares, and smaller batches where backward passes would not fit a process's share of the memory.

    Args:
        machine: What each process gets.
        shape: The model's sizes.
        decisions: All others.
        on_gpu: Whether the processes have GPUs.
    """
    share = MEMORY_SHARE * machine.memory_bytes / GIB
    config = _config_of(decisions)
    if machine.num_processes > 1:
        yield Decision(
            "generation.num_shares",
            machine.num_processes,
            f"What is decoded is shared out evenly among {machine.num_processes} processes.",
        )
    tokens = config.directions.max_batch_tokens
    accumulation = config.train.gradient_accumulation

    def needs(tokens: int, accumulation: int) -> tuple[float, float]:
        changed = config.model_copy(
            update={
                "directions": config.directions.model_copy(update={"max_batch_tokens": tokens}),
                "train": config.train.model_copy(update={"gradient_accumulation": accumulation}),
            }
        )
        found = estimate(changed, shape, num_ranks=machine.num_processes, on_gpu=on_gpu)
        return found.gradient_gib, found.train_gib

    while needs(tokens, accumulation)[0] > share and tokens > MIN_BATCH_TOKENS:
        tokens //= 2
    most = max(1, config.distill.batch_size // machine.num_processes)
    while needs(tokens, accumulation)[1] > share and 2 * accumulation <= most:
        accumulation *= 2
    gradient_gib, train_gib = needs(tokens, accumulation)
    of = f"of a process's {machine.memory_bytes / GIB:.0f} GiB"
    if tokens != config.directions.max_batch_tokens:
        yield Decision(
            "directions.max_batch_tokens",
            tokens,
            f"Tokens differentiated at once: at most {gradient_gib:.1f} GiB {of}.",
        )
    if accumulation != config.train.gradient_accumulation:
        yield Decision(
            "train.gradient_accumulation",
            accumulation,
            f"Parts of a student's batch, one after the other: at most {train_gib:.1f} GiB {of}.",
        )


def _config_of(decisions: Sequence[Decision]) -> RunConfig:
    values: dict[str, Any] = {}
    for decision in decisions:
        section, _, setting = decision.key.rpartition(".")
        held = values.setdefault(section, {}) if section else values
        held[setting] = decision.value
    return parse_config(RunConfig, values, [], origin="init")
