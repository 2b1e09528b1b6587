"""Choose the controller on the tune split; ``none`` is always one of the choices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from stir_train.answering.methods import GREEDY, settings_label
from stir_train.artifacts.run_dir import StageDir
from stir_train.config.steering import NoSteering, OneBlockSteering, SteeringConfig, VectorSteering
from stir_train.directions.grid import vector_grid
from stir_train.evals.choice import Against, choose
from stir_train.evals.halving import Candidate, split_by_halving
from stir_train.evals.verdict import describe_abstention, describe_passed_over, describe_shortlist
from stir_train.monitoring.console import caution
from stir_train.runtime.answerers import steered_answerer, with_depth
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import GenerationJob, load_answers, sampling_params
from stir_train.runtime.reuse import continued, describe_reuse, greedy_answerer, mean_reused
from stir_train.runtime.search import (
    answers_of,
    compare_in_run,
    part_name,
    search_by_halving,
)
from stir_train.runtime.shortlist import make_shortlist, still_tried, with_tokens_saved
from stir_train.stores.reports import load_report, save_report
from stir_train.types.reports import DirectionsReport
from stir_train.types.results import MethodMetrics, SteeringTrial, TuneReport
from stir_train.types.shortlist import Shortlist


def run(context: RunContext, stage: StageDir) -> Finish:
    """Try every setting on the tune split and freeze the choice."""
    tried = trial_grid(context)
    if not tried:
        return partial(_nothing_to_try, context, stage)
    basis = context.steering.basis() if context.config.needs_basis else None
    everything = {
        Candidate(settings_label(settings), settings.mode): settings for settings in tried
    }
    shortlist = make_shortlist(context, everything)
    grid = still_tried(everything, shortlist)
    greedy = greedy_job(context)
    answerers = {
        candidate: continued(context, stage, steered_answerer(context, settings, basis), greedy)
        for candidate, settings in grid.items()
    }
    parts = split_by_halving(context.splits["tune"], context.config.tune.num_halvings)
    found = search_by_halving(context, stage, answerers, parts, before=[greedy])

    def trials() -> list[SteeringTrial]:
        base = load_answers(context, stage, greedy)
        made = []
        for outcome in found:
            candidate, seen = outcome.candidate, parts[: outcome.num_parts]
            answers = answers_of(context, stage, candidate, answerers[candidate], seen)
            metrics = compare_in_run(context, candidate.name, answers, base[: len(answers)])
            reused = mean_reused(stage, [part_name(candidate, n) for n in range(len(seen))])
            made.append(SteeringTrial(grid[candidate], metrics, len(answers), reused))
        return made

    def against(one: SteeringTrial, other: SteeringTrial) -> MethodMetrics:
        candidate_of = {settings: candidate for candidate, settings in grid.items()}
        answers, baseline = (
            answers_of(context, stage, candidate, answerers[candidate], parts)
            for candidate in (candidate_of[one.settings], candidate_of[other.settings])
        )
        return compare_in_run(context, one.metrics.name, answers, baseline)

    def finish() -> Outcome:
        tried = trials()
        said = shortlist and with_tokens_saved(shortlist, tried, len(parts[0]))
        return _finish(context, stage, tried, against, said)

    return finish


def greedy_job(context: RunContext) -> GenerationJob:
    """Plain greedy answers to the tune split, which every trial is compared with."""
    return GenerationJob(
        context.splits["tune"],
        greedy_answerer(context),
        sampling_params(context, greedy=True),
        prefix=f"{GREEDY}/",
    )


def trial_grid(context: RunContext) -> list[SteeringConfig]:
    """What tuning tries, one depth per block; nothing if vectors alone are tried, at places without a direction."""
    config = context.config
    if not config.tune.enabled:
        return [with_depth(config.steering, config)]
    depths = config.tune.depths or config.harvest.depths
    depth_of = {context.resources.block_at(depth): depth for depth in depths}
    grid: list[SteeringConfig] = [
        tried
        for tried in config.tried_settings
        if isinstance(tried, OneBlockSteering) and tried.depth in depth_of.values()
    ]
    grid += _vectors(context) if "vector" in config.tune.modes else []
    return grid


def _nothing_to_try(context: RunContext, stage: StageDir) -> Outcome:
    """Choose `none`: no direction that is more than noise is at a place where a vector is tried."""
    config = context.config
    report = load_report(context.stage("directions"), DirectionsReport)
    elsewhere = ", ".join(sorted({row.place for row in report.passing}))
    advice = f". Some at {elsewhere} do: add norms for them to tune.vectors" if elsewhere else ""
    nothing = with_depth(NoSteering.like(config.steering), config)
    save_report(stage, TuneReport(nothing, len(context.splits["tune"]), (), None, None))
    return Outcome(
        {"num_trials": 0, "best_delta_accuracy": 0.0, "mode": nothing.mode, "share_reused": 0.0},
        "no setting tried",
        ends_run=(
            f"no effect at {', '.join(config.tune.vectors)}: no direction there beats those from rewards shuffled "
            f"within problems{advice}"
        ),
    )


def _vectors(context: RunContext) -> list[SteeringConfig]:
    """The given vectors, if any, and those that the table of directions offers."""
    config = context.config
    report = load_report(context.stage("directions"), DirectionsReport)
    depth_of = {context.resources.block_at(depth): depth for depth in config.direction_depths}
    given = [config.steering] if isinstance(config.steering, VectorSteering) else []
    return [*given, *vector_grid(report.passing, config.tune.vectors, depth_of)]


def _finish(
    context: RunContext,
    stage: StageDir,
    trials: Sequence[SteeringTrial],
    against: Against,
    shortlist: Shortlist | None,
) -> Outcome:
    """Freeze the choice."""
    config, num_problems = context.config, len(context.splits["tune"])
    whole = [trial for trial in trials if trial.num_problems == num_problems]
    if config.tune.enabled:
        nothing = with_depth(NoSteering.like(config.steering), config)
        chosen, passed_over = choose(
            whole, nothing, max_accuracy_loss=config.tune.max_accuracy_loss, against=against
        )
    else:  # the given settings are used as they stand, whatever they gain
        chosen, passed_over = whole[0].settings, None
    report = TuneReport(chosen, num_problems, tuple(trials), passed_over, shortlist)
    save_report(stage, report)
    if report.abstains:
        context.console.print(caution(describe_abstention(report)), soft_wrap=True)
    if shortlist is not None:
        context.console.print(describe_shortlist(shortlist), soft_wrap=True)
    if passed_over is not None:
        context.console.print(describe_passed_over(passed_over), soft_wrap=True)
    for trial in trials:
        figure = {f"{settings_label(trial.settings)}/utility": trial.metrics.utility}
        context.metrics.summary("tune", figure)
    best = max(whole, key=lambda trial: trial.metrics.utility)
    gain = best.metrics.delta_accuracy
    given_up = f", {len(trials) - len(whole)} given up early" if len(whole) < len(trials) else ""
    return Outcome(
        {
            "num_trials": len(trials),
            "best_delta_accuracy": gain,
            "mode": chosen.mode,
            "share_reused": report.share_reused,
        },
        f"{len(trials)} settings on {num_problems} problems{given_up}; best "
        f"{settings_label(best.settings)} ({gain:+.1%} accuracy); chosen: {settings_label(chosen)}"
        f"{describe_reuse(report.share_reused)}",
    )
