"""Measure every entry's uplift by paired replay from greedy rollouts of the harvest split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tables import load_table, save_table
from stir_train.artifacts.tensors import save_tensors
from stir_train.basis.validate import (
    Arm,
    PlannedTrial,
    StatePool,
    best_arms,
    entry_uplifts,
    plan_trials,
    still_promising,
    validated_basis,
)
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.distributed.claims import Note
from stir_train.errors import StageError
from stir_train.generation.backend import GenerationRequest, PlannedImpulse
from stir_train.monitoring.console import Advance, progress
from stir_train.recipes.context import RunContext
from stir_train.recipes.elastic import make_missing
from stir_train.recipes.harvest import (
    BASIS,
    ROLLOUTS,
    load_basis,
    model_metadata,
    rollout_chunks,
    save_report,
)
from stir_train.recipes.rollouts import (
    GenerationJob,
    generate_jobs,
    grade_rollouts,
    load_rollouts,
    load_states,
    num_chunks,
    sampling_params,
)
from stir_train.steering.artifacts import BASIS_FILE
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import ControlBasis, Intervention
from stir_train.types.trajectory import CapturedStates

VALIDATE = STAGE_DIRECTORIES["validate"]
NULL, ROUND = "null/", "round-"
LONG = 1.25
"""A right greedy rollout is long when it takes this many times the shortest right sample."""
OTHER_WEIGHT = 0.25
"""How often a state with nothing to gain is tried, relative to one with something: the value head
must also learn where an impulse does harm."""


@dataclass(frozen=True)
class NullRollouts:
    """The greedy rollouts of the harvest split with their control-point states.

    Attributes:
        graded: One a prompt.
        captured: States of all of them.
        owner: For each state, its rollout.
        improvable: For each rollout, whether it is wrong, or right but long.
    """

    graded: list[GradedRollout]
    captured: CapturedStates
    owner: list[int]
    improvable: list[bool]


def run_validate(context: RunContext) -> None:
    """Replay, summarise, and keep the entries that help."""
    config = context.config
    settings = {
        "validate": config.validation,
        "token_price": config.steering.token_price,
        "generation": config.generation,
        "seed": config.seed,
        "num_threads": config.num_threads,
    }
    stage = context.begin(VALIDATE, settings, upstream=(BASIS,), splits=("harvest",))
    if stage is None:
        return
    basis = load_basis(context)
    trials: list[Intervention] = []
    if config.validation.enabled:
        trials = _run_trials(context, stage, basis)
    context.world.on_main("validated", lambda: _finish(context, stage, basis, trials))


def _finish(
    context: RunContext, stage: StageDir, basis: ControlBasis, trials: Sequence[Intervention]
) -> None:
    config = context.config
    kept = _keep_helpful(context, stage, basis, trials)
    save_tensors(stage, BASIS_FILE, vars(kept), model_metadata(context))
    num = int((~basis.is_anchor).sum())
    num_kept = int((~kept.is_anchor).sum())
    gain = [t.uplift(config.steering.token_price, config.generation.max_new_tokens) for t in trials]
    helped = sum(value > 0 for value in gain) / len(gain) if gain else 0.0
    context.report_done(
        stage,
        {"num_trials": len(trials), "num_kept": num_kept, "helped_rate": helped},
        f"{len(trials)} paired replays, {helped:.0%} helped; kept {num_kept} of {num} corrections"
        if config.validation.enabled
        else "off; every entry is kept",
    )


def load_interventions(context: RunContext) -> list[Intervention]:
    """Every trial of a finished validation, in order."""
    files = context.stage(VALIDATE).files(ROUND)
    return [trial for file in files for trial in load_table(file, Intervention)]


def load_null(context: RunContext) -> NullRollouts:
    """The greedy rollouts that the trials were continued from."""
    return _read_null(context, context.stage(VALIDATE))


def _run_trials(context: RunContext, stage: StageDir, basis: ControlBasis) -> list[Intervention]:
    config = context.config.validation
    price = context.config.steering.token_price
    budget = context.config.generation.max_new_tokens
    job = _null_job(context)
    total = len(job.prompts) + config.num_rounds * config.trials_per_round
    with progress(context.console, "validate", total, "replays") as advance:
        generate_jobs(context, stage, [job], advance)
        null = _read_null(context, stage)
        pool = StatePool(
            states=null.captured.states,
            points=torch.tensor([label.point for label in null.captured.labels]),
            weights=torch.tensor(
                [1.0 if null.improvable[owner] else OTHER_WEIGHT for owner in null.owner]
            ),
            blocks=null.captured.blocks,
        )
        arms = [Arm(block, strength) for block in pool.blocks for strength in config.strengths]
        trials: list[Intervention] = []
        for number in range(config.num_rounds):
            uplifts = entry_uplifts(trials, len(basis), token_price=price, max_new_tokens=budget)
            if number:
                arms = best_arms(trials, arms, token_price=price, max_new_tokens=budget)
            generator = torch.Generator().manual_seed(context.config.seed + number)
            plans = plan_trials(
                pool, basis, still_promising(uplifts), arms, config.trials_per_round, generator
            )
            trials += _make_round(context, stage, (null, basis), plans, number, advance)
    return trials


def _make_round(
    context: RunContext,
    stage: StageDir,
    source: tuple[NullRollouts, ControlBasis],
    plans: Sequence[PlannedTrial],
    number: int,
    advance: Advance,
) -> list[Intervention]:
    """Generate the trials of a round chunk by chunk, together with the other ranks."""
    size = context.config.generation.chunk_completions
    starts = {f"{start // size:05d}": start for start in range(0, len(plans), size)}
    files = {key: f"{ROUND}{number:02d}/trials-{key}.parquet" for key in starts}
    price, budget = context.config.steering.token_price, context.config.generation.max_new_tokens

    def make(key: str) -> dict[str, float]:
        made = _make_trials(context, source, plans[starts[key] : starts[key] + size], files[key])
        if not made:
            return {}
        save_table(stage, files[key], Intervention, made)
        return {
            "mean_uplift": sum(t.uplift(price, budget) for t in made) / len(made),
            "tokens": sum(t.tokens for t in made),
        }

    def hear(key: str, note: Note) -> None:
        if note:
            context.metrics.log(VALIDATE, {"round": number, **note}, step=int(key))
        advance(min(size, len(plans) - starts[key]), f"round {number + 1}")

    together = context.engine if context.is_sharded else None
    make_missing(context, stage, files, make, hear, together=together)
    return [t for name in files.values() for t in load_table(stage.path / name, Intervention)]


def _make_trials(
    context: RunContext,
    source: tuple[NullRollouts, ControlBasis],
    plans: Sequence[PlannedTrial],
    name: str,
) -> list[Intervention]:
    """Replay trials and judge them; nothing on a rank that only decodes along."""
    null, basis = source
    prompts = {prompt.prompt_id: prompt for prompt in context.splits["harvest"]}
    requests = []
    for plan in plans:
        label = null.captured.labels[plan.state]
        rollout = null.graded[null.owner[plan.state]].rollout
        impulse = PlannedImpulse(
            label.token_index, plan.block, plan.strength * basis.directions[plan.entry]
        )
        requests.append(
            GenerationRequest(
                prompts[label.prompt_id],
                prefix_token_ids=rollout.token_ids[: label.token_index + 1],
                planned=(impulse,),
            )
        )
    result = context.engine.generate(
        requests, sampling_params(context, greedy=True), seed=context.config.seed
    )
    if not context.is_mine_to_write(f"{VALIDATE}/{name}", [r.token_ids for r in result.rollouts]):
        return []
    graded = grade_rollouts(context, result.rollouts, [r.prompt for r in requests])
    return [_outcome(null, plan, outcome) for plan, outcome in zip(plans, graded, strict=True)]


def _outcome(null: NullRollouts, plan: PlannedTrial, outcome: GradedRollout) -> Intervention:
    label, owner = null.captured.labels[plan.state], null.owner[plan.state]
    without = null.graded[owner]
    return Intervention(
        prompt_id=label.prompt_id,
        state=plan.state,
        point=label.point,
        token_index=label.token_index,
        block=plan.block,
        entry=plan.entry,
        strength=plan.strength,
        propensity=plan.propensity,
        improvable=null.improvable[owner],
        correct=outcome.grade.correct,
        tokens=len(outcome.rollout.token_ids),
        null_correct=without.grade.correct,
        null_tokens=len(without.rollout.token_ids),
    )


def _keep_helpful(
    context: RunContext, stage: StageDir, basis: ControlBasis, trials: Sequence[Intervention]
) -> ControlBasis:
    if not trials:
        save_report(stage, {"entries": [], "arms": []})
        return basis
    price = context.config.steering.token_price
    budget = context.config.generation.max_new_tokens
    uplifts = entry_uplifts(trials, len(basis), token_price=price, max_new_tokens=budget)
    report = {
        "entries": [dataclasses.asdict(u) for u in uplifts if u.count],
        "arms": _arm_report(trials, price, budget),
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
    for arm in sorted({(t.block, t.strength) for t in trials}):
        for improvable in (True, False):
            values = [
                t.uplift(price, budget)
                for t in trials
                if (t.block, t.strength) == arm and t.improvable is improvable
            ]
            if values:
                rows.append(
                    {
                        "block": arm[0],
                        "strength": arm[1],
                        "improvable": improvable,
                        "count": len(values),
                        "mean_uplift": sum(values) / len(values),
                        "helped": sum(v > 0 for v in values) / len(values),
                        "harmed": sum(v < 0 for v in values) / len(values),
                    }
                )
    return rows


def _null_job(context: RunContext) -> GenerationJob:
    return GenerationJob(
        prompts=context.splits["harvest"],
        num_samples=1,
        sampling=sampling_params(context, greedy=True),
        capture_blocks=context.captured_blocks,
        prefix=NULL,
    )


def _read_null(context: RunContext, stage: StageDir) -> NullRollouts:
    job = _null_job(context)
    graded: list[GradedRollout] = []
    parts: list[CapturedStates] = []
    for chunk in range(num_chunks(context, job)):
        graded += load_rollouts(stage, NULL, chunk)
        parts.append(load_states(stage, NULL, chunk))
    captured = CapturedStates.concatenate(parts)
    if not captured.labels:
        raise StageError("greedy rollouts reach no control point; there is nowhere to steer")
    index = {g.rollout.prompt_id: i for i, g in enumerate(graded)}
    shortest: dict[str, int] = {}
    context.stage(ROLLOUTS).require_complete()
    for sampled, _ in rollout_chunks(context):
        for item in sampled:
            if item.grade.correct:
                length, name = len(item.rollout.token_ids), item.rollout.prompt_id
                shortest[name] = min(length, shortest.get(name, length))
    improvable = [
        not g.grade.correct
        or len(g.rollout.token_ids)
        > LONG * shortest.get(g.rollout.prompt_id, len(g.rollout.token_ids))
        for g in graded
    ]
    return NullRollouts(
        graded, captured, [index[label.prompt_id] for label in captured.labels], improvable
    )
