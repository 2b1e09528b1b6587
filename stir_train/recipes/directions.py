"""Differentiate recorded rollouts, sum them up to directions, and say whether there is anything to steer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.directions.advantages import Advantages
from stir_train.directions.estimate import estimate_directions
from stir_train.directions.gradients import GradientCost, GradientSettings, rollout_gradients
from stir_train.distributed.leases import Note
from stir_train.evals.tables import directions_table
from stir_train.monitoring.console import progress
from stir_train.runtime.chunk_scheduler import make_missing
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.directions import advantages_of, read_gradients
from stir_train.runtime.generation import sampling_params
from stir_train.stores.directions import (
    DIRECTIONS_FILE,
    cost_file,
    gradients_file,
    save_directions,
    save_gradients,
)
from stir_train.stores.reports import load_record, save_record, save_report
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.directions import PLACES, RolloutGradients, estimated_at
from stir_train.types.reports import DirectionEstimate, DirectionsReport
from stir_train.types.rollout import MUCH_CUT_OFF, GradedRollout


def run(context: RunContext, stage: StageDir) -> Finish:
    """Differentiate the rollouts of problems with unequal rewards, a chunk of rollouts at a time."""
    rollouts = RolloutStore(context.stage("rollout")).require_complete()
    files = {f"{chunk:05d}": gradients_file(chunk) for chunk in range(rollouts.num_chunks())}

    def make(key: str) -> Note:
        return _make_chunk(context, stage, rollouts.read_chunk("", int(key)), int(key))

    with progress(context.console, "directions", len(files), "chunks") as advance:

        def on_finished(key: str, note: Note) -> None:
            if note:
                context.metrics.log("directions", note, step=int(key))
            advance(1)

        together = context.resources.engine if context.is_sharded else None
        make_missing(context, stage, files, make, on_finished, together=together)
    return lambda: _finish(context, stage, rollouts.read(), range(len(files)))


def _make_chunk(
    context: RunContext, stage: StageDir, graded: Sequence[GradedRollout], chunk: int
) -> dict[str, float]:
    """A chunk's gradients; problems are whole within it, so their advantages are known."""
    worth = advantages_of(context, graded)
    wanted = [
        item.rollout
        for item in graded
        if (item.rollout.prompt_id, item.rollout.sample) in worth.by_rollout
    ]
    settings = _gradient_settings(context)
    gradients, cost = _no_gradients(context, settings.blocks), GradientCost()
    if wanted:
        gradients, cost = rollout_gradients(context.resources.loaded, wanted, settings)
    if not context.is_mine_to_write(
        f"{stage.name}/{chunk:05d}", [rollout.token_ids for rollout in wanted]
    ):
        return {}
    save_record(stage, cost_file(chunk), cost)
    # The gradients come last: a chunk counts as made when they are there.
    save_gradients(stage, gradients_file(chunk), gradients, context.resources.described.identity)
    return {"num_rollouts": len(wanted), "token_forwards": cost.token_forwards}


def _gradient_settings(context: RunContext) -> GradientSettings:
    config = context.config
    blocks = {context.resources.block_at(depth) for depth in config.direction_depths}
    return GradientSettings(
        blocks=tuple(sorted(blocks)),
        sampling=sampling_params(context, greedy=False),
        max_points=config.control_points.max_points,
        filtered=config.directions.filtered,
        max_batch_tokens=config.directions.max_batch_tokens,
        keep_points=False,
    )


def _no_gradients(context: RunContext, blocks: tuple[int, ...]) -> RolloutGradients:
    """Of a chunk all of whose problems have equal rewards."""
    width = context.resources.described.identity.width
    return RolloutGradients(
        (), (), blocks, torch.zeros(0), torch.zeros(0, len(PLACES), len(blocks), width)
    )


def _finish(
    context: RunContext, stage: StageDir, graded: Sequence[GradedRollout], chunks: Sequence[int]
) -> Outcome:
    """Estimate and test the directions, or find that there are none."""
    worth = advantages_of(context, graded)
    table = _estimate(context, stage, worth) if worth.by_rollout else ()
    costs = [load_record(stage.verified(cost_file(chunk)), GradientCost) for chunk in chunks]
    report = DirectionsReport(
        table=table,
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
    if table:
        context.console.print(directions_table(report))
    return Outcome(
        {
            "num_used": report.num_used,
            "num_mixed": report.num_mixed,
            "num_passing": len(report.passing),
            "truncated_rate": report.truncated_rate,
            "token_forwards": report.token_forwards,
            "recorded_tokens": report.recorded_tokens,
        },
        _in_words(report),
        # Where another mode is tried too, the run goes on with that.
        ends_run=None if report.passing or context.config.needs_basis else _nothing(report),
    )


def _estimate(
    context: RunContext, stage: StageDir, worth: Advantages
) -> tuple[DirectionEstimate, ...]:
    """Save the directions; the table of them."""
    identity, config = context.resources.described.identity, context.config
    found = estimate_directions(
        read_gradients(context),
        worth,
        seed=config.seed,
        places=tuple(dict.fromkeys(map(estimated_at, config.directions.places))),
        num_permutations=config.directions.num_permutations,
    )
    save_directions(stage, DIRECTIONS_FILE, found.directions, identity)
    return found.table


def _in_words(report: DirectionsReport) -> str:
    best = report.passing[0] if report.passing else None
    found = (
        "nothing to steer with"
        if best is None
        else f"{len(report.passing)} of {len(report.table)} directions beat chance, the best at "
        f"{best.place} of block {best.block}"
    )
    return (
        f"{report.truncated_rate:.1%} of all cut off; {report.num_used} of {report.num_rollouts} rollouts, "
        f"of {report.num_mixed} problems with unequal rewards; {report.token_forwards:,} token "
        f"forwards for {report.recorded_tokens:,} recorded tokens; {found}"
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
