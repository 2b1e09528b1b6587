"""Choose the controller on the tune split; ``none`` is always one of the choices."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.steering import (
    JudgedSteering,
    ScaledSteering,
    SteeringConfig,
    parse_steering,
    steering_for,
)
from stir_train.evals.metrics import MethodMetrics, compare_to_baseline
from stir_train.generation.controller import Controller
from stir_train.monitoring.console import progress
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import (
    GenerationJob,
    generate_jobs,
    load_answers,
    sampling_params,
)
from stir_train.stores.report_file import load_report, save_report
from stir_train.types.rollout import GradedRollout, Prompt
from stir_train.types.steering import ControlBasis


@dataclass(frozen=True)
class Trial:
    """One setting and its figures on the first problems of the tune split, or on all of them.

    Attributes:
        settings: What was tried.
        metrics: Its figures, paired with greedy on the same problems.
        num_problems: How many these are; fewer than all for a setting that was given up early.
    """

    settings: SteeringConfig
    metrics: MethodMetrics
    num_problems: int

    def is_gain(self, max_accuracy_loss: float) -> bool:
        """Whether its utility beats greedy's by the interval, and its accuracy may not be much worse."""
        return (
            self.metrics.delta_utility_ci95[0] > 0
            and self.metrics.delta_accuracy_ci95[0] >= -max_accuracy_loss
        )


def controller_for(
    context: RunContext, settings: SteeringConfig, basis: ControlBasis
) -> Controller:
    """Build the controller that settings describe; without a depth, at the first harvested one."""
    device = context.resources.loaded.device
    return context.steering.controller(with_depth(context, settings), device=device, basis=basis)


def with_depth(context: RunContext, settings: SteeringConfig) -> SteeringConfig:
    """Settings whose depth is given."""
    if settings.depth is not None:
        return settings
    return settings.model_copy(update={"depth": context.config.harvest.depths[0]})


def run(context: RunContext, stage: StageDir) -> Finish:
    """Try every setting on the tune split and freeze the choice."""
    config = context.config
    basis = context.steering.basis()
    parts = split_by_halving(context.splits["tune"], config.tune.num_halvings)
    grid, left = trial_grid(context), trial_grid(context)
    seen: list[Sequence[Prompt]] = []
    for part in parts:
        jobs = [_part_job(context, trial, basis, part, len(seen)) for trial in left]
        if not seen:
            jobs.insert(0, tune_job(context, None, basis))
        seen.append(part)
        total = sum(len(job.prompts) for job in jobs)
        title = f"tune {len(seen)}/{len(parts)}" if len(parts) > 1 else "tune"
        with progress(context.console, title, total, "problems") as advance:
            generate_jobs(context, stage, jobs, advance)
        if len(seen) < len(parts):
            left = _survivors(context, stage, left, seen)
    return lambda: _finish(context, stage, grid, parts)


def tune_job(
    context: RunContext, settings: SteeringConfig | None, basis: ControlBasis
) -> GenerationJob:
    """Greedy answers to the tune split, steered by settings or plain."""
    return GenerationJob(
        prompts=context.splits["tune"],
        num_samples=1,
        sampling=sampling_params(context, greedy=True),
        make_controller=None
        if settings is None
        else lambda: controller_for(context, settings, basis),
        prefix=f"{'greedy' if settings is None else trial_name(settings)}/",
    )


def _part_job(
    context: RunContext,
    settings: SteeringConfig,
    basis: ControlBasis,
    part: Sequence[Prompt],
    number: int,
) -> GenerationJob:
    whole = tune_job(context, settings, basis)
    return dataclasses.replace(whole, prompts=part, prefix=f"{whole.prefix}part-{number}/")


def split_by_halving(prompts: Sequence[Prompt], num_halvings: int) -> list[Sequence[Prompt]]:
    """Cut problems so that every cut but the first doubles how many there are so far."""
    ends = [len(prompts) >> i for i in range(num_halvings, -1, -1)]
    starts = [0, *ends[:-1]]
    return [prompts[a:b] for a, b in zip(starts, ends, strict=True) if b > a]


def _trials(
    context: RunContext,
    stage: StageDir,
    settings: Sequence[SteeringConfig],
    seen: Sequence[Sequence[Prompt]],
) -> list[Trial]:
    """Figures of settings on the parts they have all seen."""
    basis = context.steering.basis()
    greedy = load_answers(context, stage, tune_job(context, None, basis))
    trials = []
    for tried in settings:
        answers: list[GradedRollout] = []
        for number, part in enumerate(seen):
            answers += load_answers(context, stage, _part_job(context, tried, basis, part, number))
        trials.append(
            Trial(
                tried,
                compare_to_baseline(
                    trial_name(tried),
                    answers,
                    greedy[: len(answers)],
                    num_resamples=context.config.evaluate.num_bootstrap,
                    price_per_token=price_per_token(context),
                ),
                len(answers),
            )
        )
    return trials


def _survivors(
    context: RunContext,
    stage: StageDir,
    settings: Sequence[SteeringConfig],
    seen: Sequence[Sequence[Prompt]],
) -> list[SteeringConfig]:
    """The settings that go on to the next part, the same on every rank."""
    kept = context.world.on_main(
        f"half {len(seen)}",
        lambda: _better_half(_trials(context, stage, settings, seen)),
    )
    return [tried for tried in settings if trial_name(tried) in kept]


def _better_half(trials: Sequence[Trial]) -> list[str]:
    """Names of the better half by utility, and of the best of every mode."""
    ranked = sorted(trials, key=lambda trial: -trial.metrics.utility)
    kept = [trial_name(trial.settings) for trial in ranked[: (len(ranked) + 1) // 2]]
    best: dict[str, str] = {}
    for trial in ranked:
        best.setdefault(trial.settings.mode, trial_name(trial.settings))
    return [*kept, *(name for name in best.values() if name not in kept)]


def _finish(
    context: RunContext,
    stage: StageDir,
    grid: Sequence[SteeringConfig],
    parts: Sequence[Sequence[Prompt]],
) -> Outcome:
    """Retrace who was given up when, from the answers that are there, and freeze the choice."""
    left, trials = list(grid), []
    for number in range(1, len(parts) + 1):
        found = _trials(context, stage, left, parts[:number])
        kept = _better_half(found) if number < len(parts) else []
        trials += [trial for trial in found if trial_name(trial.settings) not in kept]
        left = [settings for settings in left if trial_name(settings) in kept]
    whole = [trial for trial in trials if trial.num_problems == len(context.splits["tune"])]
    chosen = choose(
        whole,
        with_depth(context, context.config.steering),
        max_accuracy_loss=context.config.tune.max_accuracy_loss,
    )
    _save_choice(stage, trials, chosen)
    for trial in trials:
        name = trial_name(trial.settings)
        context.metrics.log("tune", {f"{name}/utility": trial.metrics.utility})
    best = max(whole, key=lambda trial: trial.metrics.utility)
    gain = best.metrics.delta_accuracy
    given_up = f", {len(trials) - len(whole)} given up early" if len(whole) < len(trials) else ""
    return Outcome(
        {"num_trials": len(trials), "best_delta_accuracy": gain, "mode": chosen.mode},
        f"{len(trials)} settings on {len(context.splits['tune'])} problems{given_up}; best "
        f"{trial_name(best.settings)} ({gain:+.1%} accuracy); chosen: {trial_name(chosen)}",
    )


def price_per_token(context: RunContext) -> float:
    """What one token is worth in accuracy."""
    return context.config.utility.token_price / context.config.generation.max_new_tokens


def trial_grid(context: RunContext) -> list[SteeringConfig]:
    """What tuning tries, one depth per block."""
    config = context.config
    if not config.tune.enabled:
        return [with_depth(context, config.steering)]
    depths = config.tune.depths or config.harvest.depths
    depth_of = {context.resources.block_at(depth): depth for depth in depths}
    return [tried for tried in config.tried_settings if tried.depth in depth_of.values()]


def trial_name(settings: SteeringConfig) -> str:
    """A short label, also the trial's directory."""
    if settings.mode == "none":
        return "none"
    parts: list[str] = [settings.mode]
    if settings.depth is not None:
        parts.append(f"depth{settings.depth:g}")
    if isinstance(settings, ScaledSteering):
        parts.append(f"strength{settings.strength:g}")
    if isinstance(settings, JudgedSteering):
        parts.append(f"doubt{settings.doubt:g}")
        for name, value in (
            ("margin", settings.margin),
            ("num_candidates", settings.num_candidates),
        ):
            if value != JudgedSteering.model_fields[name].default:
                parts.append(f"{name.removeprefix('num_')}{value:g}")
    return "-".join(parts)


def choose(
    trials: Sequence[Trial], base: SteeringConfig, *, max_accuracy_loss: float
) -> SteeringConfig:
    """The setting of most utility among those that beat greedy by an interval, or ``none``."""
    gains = [trial for trial in trials if trial.is_gain(max_accuracy_loss)]
    if not gains:
        return steering_for("none", base)
    best = max(gains, key=lambda trial: trial.metrics.utility)
    return best.settings


def best_of_each_mode(context: RunContext) -> list[SteeringConfig]:
    """The setting of most utility of every mode tried; those that gained nothing included."""
    trials = load_report(context.stage("tune"))["trials"]
    whole = [t for t in trials if t["num_problems"] == len(context.splits["tune"])]
    best: dict[str, Any] = {}
    for trial in sorted(whole, key=lambda t: -t["metrics"]["utility"]):
        best.setdefault(
            trial["settings"]["mode"], trial["settings"]
        )  # of equals the first, as chosen
    return [parse_steering(best[mode]) for mode in sorted(best)]


def _save_choice(stage: StageDir, trials: list[Trial], chosen: SteeringConfig) -> None:
    save_report(
        stage,
        json.loads(
            json.dumps(
                {
                    "chosen": chosen.model_dump(mode="json"),
                    "trials": [
                        {
                            "settings": trial.settings.model_dump(mode="json"),
                            "metrics": dataclasses.asdict(trial.metrics),
                            "num_problems": trial.num_problems,
                        }
                        for trial in trials
                    ],
                }
            )
        ),
    )
