"""Differentiate recorded rollouts, sum them up to directions, and say whether there is anything to steer."""

from __future__ import annotations

from functools import partial

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.run import RunConfig
from stir_train.directions.gradients import GradientCost, GradientSettings, rollout_gradients
from stir_train.distributed.leases import Note
from stir_train.evals.tables import directions_table
from stir_train.runtime.chunk_scheduler import make_missing
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.direction_steps import (
    StepFiles,
    acting_vectors,
    load_step,
    load_vectors,
    sampling_job,
    step_files,
    take_step,
)
from stir_train.runtime.directions import advantages_of
from stir_train.runtime.generation import generate_jobs, sampling_params
from stir_train.stores.directions import (
    DIRECTIONS_FILE,
    cost_file,
    gradients_file,
    points_file,
    save_directions,
    save_gradients,
    save_points,
)
from stir_train.stores.reports import load_record, save_record, save_report
from stir_train.types.directions import PLACES, PlacedVector, RolloutGradients
from stir_train.types.reports import DirectionsReport
from stir_train.types.rollout import MUCH_CUT_OFF


def run(context: RunContext, stage: StageDir) -> Finish:
    """Differentiate the rollouts of problems with unequal rewards, and step as often as asked and useful."""
    taken = 0
    for number in range(1, context.config.directions.num_steps + 1):
        if number > 1:
            job = sampling_job(context, stage, number)
            total = len(job.prompts) * job.num_samples
            with context.progress(f"step {number}", total, "rollouts") as advance:
                generate_jobs(context, stage, [job], advance)
        _differentiate(context, stage, step_files(context, stage, number))
        taken = number
        if not context.world.on_main(f"step {number}", partial(take_step, context, stage, number)):
            break
    return lambda: _finish(context, stage, taken)


def _differentiate(context: RunContext, stage: StageDir, step: StepFiles) -> None:
    """A step's gradients, a chunk of its rollouts at a time."""
    chunks = range(step.store.num_chunks(step.set_name))
    files = {f"{step.prefix}{n:05d}": (f"{step.prefix}{gradients_file(n)}",) for n in chunks}
    acting = acting_vectors(context, stage, step.number)

    def make(key: str) -> Note:
        return _make_chunk(context, stage, step, int(key.removeprefix(step.prefix)), acting)

    title = "directions" if step.number == 1 else f"directions {step.number}"
    with context.progress(title, len(files), "chunks") as advance:

        def on_finished(key: str, note: Note) -> None:
            if note:
                number = int(key.removeprefix(step.prefix))
                series = f"estimate-{step.number}"
                context.metrics.log("directions", note, step=number, series=series)
            advance(1)

        together = context.resources.engine if context.is_sharded else None
        make_missing(context, stage, files, make, on_finished, together=together)


def _make_chunk(
    context: RunContext,
    stage: StageDir,
    step: StepFiles,
    chunk: int,
    acting: tuple[PlacedVector, ...],
) -> dict[str, float]:
    """A chunk's gradients; problems are whole within it, so their advantages are known."""
    graded = step.store.read_chunk(step.set_name, chunk)
    worth = advantages_of(context, graded)
    wanted = [
        item.rollout
        for item in graded
        if (item.rollout.prompt_id, item.rollout.sample) in worth.by_rollout
    ]
    settings = _gradient_settings(context, acting)
    gradients, cost = _no_gradients(context, settings.blocks), GradientCost()
    if wanted:
        gradients, cost = rollout_gradients(context.resources.loaded, wanted, settings)
    token_ids = [rollout.token_ids for rollout in wanted]
    if not context.is_mine_to_write(f"{stage.name}/{step.prefix}{chunk:05d}", token_ids):
        return {}
    save_record(stage, f"{step.prefix}{cost_file(chunk)}", cost)
    identity = context.resources.described.identity
    if gradients.points is not None:
        save_points(stage, points_file(chunk), gradients.points, gradients.blocks, identity)
    # The gradients come last: a chunk counts as made when they are there.
    save_gradients(stage, f"{step.prefix}{gradients_file(chunk)}", gradients, identity)
    return {"num_rollouts": len(wanted), "token_forwards": cost.token_forwards}


def _gradient_settings(context: RunContext, acting: tuple[PlacedVector, ...]) -> GradientSettings:
    config = context.config
    blocks = {context.resources.block_at(depth) for depth in config.direction_depths}
    return GradientSettings(
        blocks=tuple(sorted(blocks)),
        sampling=sampling_params(context, greedy=False),
        max_points=config.control_points.max_points,
        filtered=config.directions.filtered,
        max_batch_tokens=config.directions.max_batch_tokens,
        keep_points=config.steers_along_gradients and not acting,
        acting=acting,
    )


def _no_gradients(context: RunContext, blocks: tuple[int, ...]) -> RolloutGradients:
    """Of a chunk all of whose problems have equal rewards."""
    width = context.resources.described.identity.width
    return RolloutGradients(
        prompt_ids=(),
        samples=(),
        blocks=blocks,
        logprobs=torch.zeros(0),
        sums=torch.zeros(0, len(PLACES), len(blocks), width),
        state_norms=torch.zeros(0, len(blocks)),
        state_means=torch.zeros(0, len(PLACES), len(blocks), width),
    )


def _finish(context: RunContext, stage: StageDir, num_steps: int) -> Outcome:
    """Save the directions that the steps came to, or say that there are none."""
    steps = tuple(load_step(stage, number) for number in range(1, num_steps + 1))
    files = [step_files(context, stage, step.number) for step in steps]
    graded = files[0].store.read()
    worth = advantages_of(context, graded)
    costs = [
        load_record(stage.verified(f"{step.prefix}{cost_file(chunk)}"), GradientCost)
        for step in files
        for chunk in range(step.store.num_chunks(step.set_name))
    ]
    report = DirectionsReport(
        steps=steps,
        significance=context.config.directions.significance,
        num_rollouts=len(graded),
        num_problems=len({item.rollout.prompt_id for item in graded}),
        num_used=len(worth.by_rollout),
        num_mixed=len({prompt_id for prompt_id, _ in worth.by_rollout}),
        truncated_rate=sum(item.rollout.truncated for item in graded) / len(graded),
        token_forwards=sum(cost.token_forwards for cost in costs),
        recorded_tokens=sum(cost.recorded_tokens for cost in costs),
    )
    save_report(stage, report)
    if worth.by_rollout:
        # Where a later step had no problem of unequal rewards, it left no vectors.
        last = max(step.number for step in steps if step.table)
        identity = context.resources.described.identity
        save_directions(stage, DIRECTIONS_FILE, load_vectors(context, stage, last), identity)
        context.console.print(directions_table(report))
    return Outcome(
        {
            "num_used": report.num_used,
            "num_mixed": report.num_mixed,
            "num_passing": len(report.passing),
            "num_steps": len(steps),
            "truncated_rate": report.truncated_rate,
            "token_forwards": report.token_forwards,
            "recorded_tokens": report.recorded_tokens,
        },
        _in_words(report),
        ends_run=None if report.passing or _has_other_basis(context.config) else _nothing(report),
    )


def _has_other_basis(config: RunConfig) -> bool:
    return config.needs_basis and not config.steers_along_gradients


def _in_words(report: DirectionsReport) -> str:
    best = report.passing[0] if report.passing else None
    found = (
        "nothing to steer with"
        if best is None
        else f"{len(report.passing)} of {len(report.table)} directions beat chance, the best at "
        f"{best.place} of block {best.block}"
    )
    later = "".join(
        f"; step {step.number}: samples {step.correct_rate:.1%} right, {step.tokens_mean:.0f} tokens"
        for step in report.steps
        if len(report.steps) > 1
    )
    return (
        f"{report.truncated_rate:.1%} of all cut off; {report.num_used} of {report.num_rollouts} rollouts, "
        f"of {report.num_mixed} problems with unequal rewards; {report.token_forwards:,} token "
        f"forwards for {report.recorded_tokens:,} recorded tokens; {found}{later}"
    )


def _nothing(report: DirectionsReport) -> str:
    """Why the run abstains, and what to change."""
    if not report.table:
        why = f"no effect: in none of {report.num_problems} problems do samples differ in reward"
    else:
        best = min(report.table, key=lambda row: row.family_p_value)
        why = (
            "no effect: no direction beats those from rewards shuffled within problems. The nearest is "
            f"at {best.place} of block {best.block}: p {best.family_p_value:.3f} over all rows, where "
            f"at most {report.significance:g} counts, from {report.num_mixed} of "
            f"{report.num_problems} problems whose samples differ in reward"
        )
    if report.truncated_rate >= MUCH_CUT_OFF:
        why = (
            f"{report.truncated_rate:.1%} of the rollouts were cut off at generation.max_new_tokens, and "
            f"count as wrong: raise it, or see that the model's stop tokens end its answers. {why}"
        )
    return (
        f"{why}. There is nothing to steer with, so the run ends here. More problems "
        "(splits.num_harvest), more samples of each (rollout.num_samples), problems that the model "
        f"solves sometimes, or fewer completions cut off (now {report.truncated_rate:.1%}; "
        "generation.max_new_tokens) would change that"
    )
