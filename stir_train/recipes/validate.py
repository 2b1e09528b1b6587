"""Measure every entry's uplift by paired replay from greedy rollouts of the harvest split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tables import save_table
from stir_train.artifacts.tensors import save_tensors
from stir_train.basis.validate import (
    Guide,
    Injection,
    PlannedTrial,
    entry_uplifts,
    plan_trials,
    still_promising,
    validated_basis,
)
from stir_train.config.steering import ValueSteering
from stir_train.distributed.leases import Note
from stir_train.monitoring.console import Advance, progress
from stir_train.recipes.block_selection import Heads, better_blocks, provisional_heads
from stir_train.recipes.harvest import load_basis, model_metadata, save_report
from stir_train.recipes.intervention_data import (
    InterventionData,
    greedy_job,
    load_intervention_data,
    load_plan,
    make_trials,
    plan_file,
    read_blocks,
    trials_file,
)
from stir_train.runtime.chunk_scheduler import make_missing
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import generate_jobs
from stir_train.steering.artifacts import BASIS_FILE
from stir_train.types.steering import ControlBasis, Intervention


def run(context: RunContext, stage: StageDir) -> Finish:
    """Replay, summarise, and keep the entries that help."""
    basis = load_basis(context)
    trials: list[Intervention] = []
    if context.config.validation.enabled:
        trials = _run_trials(context, stage, basis)
    return lambda: _finish(context, stage, basis, trials)


def _finish(
    context: RunContext, stage: StageDir, basis: ControlBasis, trials: Sequence[Intervention]
) -> Outcome:
    config = context.config
    kept = _keep_helpful(context, stage, basis, trials)
    save_tensors(stage, BASIS_FILE, vars(kept), model_metadata(context))
    num = int((~basis.is_anchor).sum())
    num_kept = int((~kept.is_anchor).sum())
    gain = [t.uplift(config.utility.token_price, config.generation.max_new_tokens) for t in trials]
    helped = sum(value > 0 for value in gain) / len(gain) if gain else 0.0
    return Outcome(
        {"num_trials": len(trials), "num_kept": num_kept, "helped_rate": helped},
        f"{len(trials)} paired replays, {helped:.0%} helped; kept {num_kept} of {num} corrections"
        if config.validation.enabled
        else "off; every entry is kept",
    )


def finished_intervention_data(context: RunContext) -> InterventionData | None:
    """Everything that a finished validation tried, or None if it was off."""
    if not context.config.validation.enabled:
        return None
    stage = context.stage("validate")
    stage.require_complete()
    return load_intervention_data(context, stage, context.config.validation.num_rounds)


def _run_trials(context: RunContext, stage: StageDir, basis: ControlBasis) -> list[Intervention]:
    config = context.config.validation
    job = greedy_job(context)
    total = len(job.prompts) + config.num_completions(len(context.resources.captured_blocks))
    injections = [
        Injection(block, strength)
        for block in context.resources.captured_blocks
        for strength in config.strengths
    ]
    with progress(context.console, "validate", total, "replays") as advance:
        generate_jobs(context, stage, [job], advance)
        replays = load_intervention_data(context, stage, 0)
        for number in range(config.num_rounds):
            source, guide = (replays, basis), None
            if number:
                heads = provisional_heads(context, stage, replays, injections, number)
                injections = better_blocks(
                    context, stage, source, (injections, heads), number, advance
                )
                guide = _guide(context, heads)
            _plan_round(context, stage, source, injections, guide, number)
            _make_round(context, stage, source, number, advance)
            replays = load_intervention_data(context, stage, number + 1)
    return replays.trials


def _plan_round(
    context: RunContext,
    stage: StageDir,
    source: tuple[InterventionData, ControlBasis],
    injections: Sequence[Injection],
    guide: Guide | None,
    number: int,
) -> None:
    """Write down what a round tries, once for all ranks and attempts."""
    replays, basis = source
    price = context.config.utility.token_price
    budget = context.config.generation.max_new_tokens

    def write() -> None:
        if stage.has(plan_file(number)):
            return
        uplifts = entry_uplifts(
            replays.trials, len(basis), token_price=price, max_new_tokens=budget
        )
        plans = plan_trials(
            replays.pool(),
            basis,
            still_promising(uplifts),
            injections,
            context.config.validation.trials_per_round,
            torch.Generator().manual_seed(context.config.seed + number),
            guide=guide,
        )
        save_table(stage, plan_file(number), PlannedTrial, plans)

    context.world.on_main(f"plan of round {number}", write)


def _guide(context: RunContext, heads: Heads) -> Guide:
    """Scores impulses as the heads would choose."""
    doubt = ValueSteering.like(context.config.steering).doubt
    price = context.config.utility.token_price

    def score(
        block: int, point: int, states: Float[Tensor, "L D"], impulses: Float[Tensor, "E D"]
    ) -> Float[Tensor, "E"]:
        rows = [
            context.resources.captured_blocks.index(read) for read in read_blocks(context, block)
        ]
        bound = heads[block].gain_bound(
            states[rows].flatten()[None],
            impulses[None],
            torch.tensor([point]),
            token_price=price,
            doubt=doubt,
        )
        return bound[0]

    return score


def _make_round(
    context: RunContext,
    stage: StageDir,
    source: tuple[InterventionData, ControlBasis],
    number: int,
    advance: Advance,
) -> None:
    """Generate the trials of a round chunk by chunk, together with the other ranks."""
    plans = load_plan(stage, number)
    size = context.config.generation.chunk_completions
    chunks = {f"{chunk:05d}": chunk for chunk in range(-(-len(plans) // size))}
    files = {key: trials_file(number, chunk) for key, chunk in chunks.items()}
    price, budget = context.config.utility.token_price, context.config.generation.max_new_tokens

    def part(key: str) -> list[PlannedTrial]:
        return plans[chunks[key] * size : (chunks[key] + 1) * size]

    def make(key: str) -> dict[str, float]:
        made = make_trials(context, stage, source, part(key), (number, chunks[key]))
        if not made:
            return {}
        return {
            "mean_uplift": sum(t.uplift(price, budget) for t in made) / len(made),
            "tokens": sum(t.tokens for t in made),
        }

    def on_finished(key: str, note: Note) -> None:
        if note:
            context.metrics.log("validate", {"round": number, **note}, step=int(key))
        advance(len(part(key)), f"round {number + 1}")

    together = context.resources.engine if context.is_sharded else None
    make_missing(context, stage, files, make, on_finished, together=together)


def _keep_helpful(
    context: RunContext, stage: StageDir, basis: ControlBasis, trials: Sequence[Intervention]
) -> ControlBasis:
    if not trials:
        save_report(stage, {"entries": [], "injections": []})
        return basis
    price = context.config.utility.token_price
    budget = context.config.generation.max_new_tokens
    uplifts = entry_uplifts(trials, len(basis), token_price=price, max_new_tokens=budget)
    report = {
        "entries": [dataclasses.asdict(u) for u in uplifts if u.count],
        "injections": _arm_report(trials, price, budget),
    }
    save_report(stage, report)
    kept = validated_basis(basis, uplifts)
    if not len(kept):
        context.console.print(
            "[yellow]! validate: no entry helps by paired replay; steering will be `none`[/]"
        )
    return kept


def _arm_report(trials: Sequence[Intervention], price: float, budget: int) -> list[dict[str, Any]]:
    """Uplift by block and strength, where there was something to gain and where there was not."""
    rows = []
    for injection in sorted({(t.block, t.strength) for t in trials}):
        for improvable in (True, False):
            values = [
                t.uplift(price, budget)
                for t in trials
                if (t.block, t.strength) == injection and t.improvable is improvable
            ]
            if values:
                rows.append(
                    {
                        "block": injection[0],
                        "strength": injection[1],
                        "improvable": improvable,
                        "count": len(values),
                        "mean_uplift": sum(values) / len(values),
                        "helped": sum(v > 0 for v in values) / len(values),
                        "harmed": sum(v < 0 for v in values) / len(values),
                    }
                )
    return rows
