"""Show what the stages that are left of a run will take, measured on this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from stir_train.config.run import RunConfig
from stir_train.distributed.launch import START, Launch, usable_cores
from stir_train.launch.costs import Rates, StageCost, rows_side_by_side, stage_costs
from stir_train.launch.estimate import GIB, ModelShape
from stir_train.launch.proposals import (
    CHUNK_OVERHEAD,
    CHUNK_SECONDS,
    chunk_costs,
    smaller_budget,
)
from stir_train.models.load import resolve_device
from stir_train.monitoring.console import caution
from stir_train.tools.measure import measure

HOUR, MINUTE = 3600, 60
COLUMNS = ("stage", "tokens", "time", "memory", "disk")


def show_costs(
    config: RunConfig, stages: Collection[str], console: Console, *, width: int, launch: Launch
) -> None:
    """Measure, then print tokens, time, memory and disk of each stage, and of all together.

    Started as several processes, all measure at once, so that each is as slow as it will be beside the others.

    Args:
        config: The run.
        stages: Those that are left to make.
        console: Where it is told; rank 0's is used.
        width: Columns to keep to.
        launch: The processes, which share the work.

    Raises:
        StirError: If the model cannot be loaded, or its answers cannot be timed.
    """
    if not stages:
        return
    if launch.rank > 0:
        measure(config)
        return
    told = "measuring this machine, for some minutes at most (--no-measure leaves it out)"
    console.print(told, width=width)
    rates, shape = measure(config)
    on_gpu = resolve_device(config.model.device).type != "cpu"
    found = stage_costs(config, shape, rates, num_processes=launch.size, on_gpu=on_gpu)
    costs = [cost for cost in found if cost.name in stages]
    console.print(_table(costs), width=width)
    for line in _rates_in_words(config, rates, launch.size):
        console.print(line, width=width)
    if "rollout" in stages and (advice := chunk_advice(config, rates)):
        console.print(advice, width=width)
    if "rollout" in stages and (advice := budget_advice(config, shape, rates, launch.size)):
        console.print(advice, width=width)
    for warning in _warnings(config, costs, num_beside=launch.local_size):
        console.print(caution(warning), width=width)


def _table(costs: Sequence[StageCost]) -> Table:
    table = Table(box=SIMPLE)
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left")
    whole = StageCost(
        "in all",
        sum(cost.num_tokens for cost in costs),
        sum(cost.hours for cost in costs),
        max((cost.memory_gib for cost in costs), default=0.0),
        sum(cost.disk_gib for cost in costs),
    )
    for cost in (*costs, whole):
        table.add_row(
            cost.name,
            f"{cost.num_tokens:,.0f}",
            in_words(cost.hours),
            f"{cost.memory_gib:.1f} GiB",
            f"{cost.disk_gib:.2f} GiB",
        )
    return table


def in_words(hours: float) -> str:
    """A duration in the unit that suits it."""
    seconds = hours * HOUR
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"{hours:.1f} h"


def _rates_in_words(config: RunConfig, rates: Rates, num_processes: int) -> list[str]:
    rows = rows_side_by_side(config, rates.prompt_tokens)
    num_answers, budget = len(rates.answer_tokens), config.generation.max_new_tokens
    num_cut = sum(length >= budget for length in rates.answer_tokens)
    ended = "" if rates.num_ended == num_answers else f", {rates.num_ended} of them to their end"
    whose = f"each of {num_processes} processes" if num_processes > 1 else "one process"
    return [
        f"measured: {rates.prefill_tokens:,.0f} tokens/s prefilled, {rates.decode_tokens(rows):,.0f} sampled "
        f"at {rows} rows, {rates.gradient_tokens:,.0f} differentiated, {rates.training_tokens:,.0f} trained on; on {whose}, as busy as the "
        "machine is now",
        f"answers have {rates.mean_answer_tokens:.0f} tokens on average ({num_answers} sampled{ended}; "
        f"{num_cut} reach generation.max_new_tokens={budget})",
        "memory is an upper bound; grading, reading and writing are not in the times",
    ]


def chunk_advice(config: RunConfig, rates: Rates) -> str:
    """What a kill loses, and a chunk size that makes it less; empty where chunks are short enough."""
    held, proposed = chunk_costs(config, rates)
    if held.seconds <= 2 * CHUNK_SECONDS:
        return ""
    told = (
        f"a chunk of the rollouts takes about {in_words(held.seconds / HOUR)}, which a kill loses; "
    )
    if proposed.num_completions == held.num_completions:
        share = CHUNK_OVERHEAD - 1
        return f"{told}smaller ones would make the rollouts more than {share:.0%} slower"
    slower = proposed.slowdown - 1
    cost = f", for {slower:.0%} more time in all" if slower > 0.005 else ""
    return (
        f"{told}generation.chunk_completions={proposed.num_completions} makes that "
        f"{in_words(proposed.seconds / HOUR)}{cost} (set it before the run: later stages go by it)"
    )


def budget_advice(config: RunConfig, shape: ModelShape, rates: Rates, num_processes: int) -> str:
    """A smaller token budget, where answers that never end would cost much; else empty."""
    found = smaller_budget(config, shape, rates, num_processes=num_processes)
    if found is None:
        return ""
    return (
        f"by these answers, one in 1,000 that ends by itself is longer than {rates.long_answer_tokens} tokens; "
        f"generation.max_new_tokens={found.max_new_tokens} cuts off those that never end, for which every "
        f"chunk waits: {found.saved_share:.0%} less time in all"
    )


def _warnings(config: RunConfig, costs: Sequence[StageCost], *, num_beside: int = 1) -> list[str]:
    """What is to be looked at before the run; ``num_beside`` is the number of processes on this machine."""
    hours = sum(cost.hours for cost in costs)
    warnings = []
    if hours > config.warn_hours:
        warnings.append(
            f"{in_words(hours)} is more than warn_hours={config.warn_hours:g}; effort=quick, fewer modes or "
            "smaller splits spend less"
        )
    memory = max((cost.memory_gib for cost in costs), default=0.0)
    own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    on_cpu = config.model.device == "cpu" or not torch.cuda.is_available()
    fitting = max(1, int(own // memory)) if memory else num_beside
    if on_cpu and (num_beside > fitting or (num_beside == 1 and memory > own / 2)):
        warnings.append(
            f"a process may take {memory:.1f} GiB and the machine has {own:.1f}: do not start more than "
            f"{fitting} here, or lower directions.max_batch_tokens, generation.max_rows or "
            "distill.batch_size"
        )
    beside = usable_cores() // (config.num_threads or usable_cores())
    if costs and on_cpu and num_beside == 1 and (more := min(beside, fitting)) > 1:
        warnings.append(
            f"one process of num_threads={config.num_threads} leaves cores idle: `{START} --nproc-per-node {more}` before "
            "the command starts as many as there is room for"
        )
    free = shutil.disk_usage(_existing(config.output_dir)).free / GIB
    disk = sum(cost.disk_gib for cost in costs)
    if disk > free:
        warnings.append(f"the run writes up to {disk:.1f} GiB, {config.output_dir} has {free:.1f}")
    return warnings


def _existing(path: Path) -> Path:
    """The nearest directory above that exists."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
