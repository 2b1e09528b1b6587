"""Choose the controller on the tune split; ``none`` is always one of the choices."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.config.stages import SteeringConfig
from stir_train.evals.metrics import MethodMetrics, compare_to_baseline
from stir_train.monitoring.console import progress
from stir_train.recipes.context import RunContext
from stir_train.recipes.harvest import load_report, save_report
from stir_train.recipes.rollouts import (
    GenerationJob,
    generate_jobs,
    load_answers,
    sampling_params,
)
from stir_train.recipes.validate import VALIDATE
from stir_train.recipes.value import VALUE
from stir_train.steering.artifacts import SteeringController
from stir_train.types.steering import ControlBasis

TUNE = STAGE_DIRECTORIES["tune"]
TOLERATED_ACCURACY_LOSS = 0.01
"""However many tokens it saves, a setting that loses more accuracy than this is not chosen."""


@dataclass(frozen=True)
class Trial:
    """One setting and its figures on the tune split."""

    settings: SteeringConfig
    metrics: MethodMetrics

    @property
    def is_gain(self) -> bool:
        """Whether its utility beats greedy's by the interval, at no loss of accuracy to speak of."""
        return (
            self.metrics.delta_utility_ci95[0] > 0
            and self.metrics.delta_accuracy >= -TOLERATED_ACCURACY_LOSS
        )


def controller_for(
    context: RunContext, settings: SteeringConfig, basis: ControlBasis
) -> SteeringController:
    """Build the controller that settings describe; without a depth, at the first harvested one."""
    device = context.loaded.device
    return context.steering.controller(with_depth(context, settings), device=device, basis=basis)


def with_depth(context: RunContext, settings: SteeringConfig) -> SteeringConfig:
    """Settings whose depth is given."""
    if settings.depth is not None:
        return settings
    return settings.model_copy(update={"depth": context.config.harvest.depths[0]})


def run_tune(context: RunContext) -> None:
    """Try every setting on the tune split and freeze the choice."""
    config = context.config
    settings = {
        "tune": config.tune,
        "steering": config.steering,
        "num_bootstrap": config.evaluate.num_bootstrap,
        "generation": config.generation,
        "num_threads": config.num_threads,
    }
    stage = context.begin(TUNE, settings, upstream=(VALIDATE, VALUE), splits=("tune",))
    if stage is None:
        return
    grid = trial_grid(context)
    basis = context.steering.basis()
    jobs = {"greedy": tune_job(context, None, basis)}
    jobs |= {trial_name(trial): tune_job(context, trial, basis) for trial in grid}
    total = len(context.splits["tune"]) * len(jobs)
    with progress(context.console, "tune", total, "problems") as advance:
        generate_jobs(context, stage, list(jobs.values()), advance)
    context.world.on_main("tuned", lambda: _finish(context, stage, grid, jobs))


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


def _finish(
    context: RunContext,
    stage: StageDir,
    grid: list[SteeringConfig],
    jobs: dict[str, GenerationJob],
) -> None:
    greedy = load_answers(context, stage, jobs["greedy"])
    trials = [
        Trial(
            trial,
            compare_to_baseline(
                trial_name(trial),
                load_answers(context, stage, jobs[trial_name(trial)]),
                greedy,
                num_resamples=context.config.evaluate.num_bootstrap,
                price_per_token=price_per_token(context),
            ),
        )
        for trial in grid
    ]
    chosen = choose(trials, with_depth(context, context.config.steering))
    _save_choice(stage, trials, chosen)
    for trial in trials:
        name = trial_name(trial.settings)
        context.metrics.log(TUNE, {f"{name}/utility": trial.metrics.utility})
    best = max(trials, key=lambda trial: trial.metrics.utility)
    gain = best.metrics.delta_accuracy
    context.report_done(
        stage,
        {"num_trials": len(trials), "best_delta_accuracy": gain, "mode": chosen.mode},
        f"{len(trials)} settings on {len(greedy)} problems; best {trial_name(best.settings)} "
        f"({gain:+.1%} accuracy); chosen: {trial_name(chosen)}",
    )


def price_per_token(context: RunContext) -> float:
    """What one token is worth in accuracy."""
    return context.config.steering.token_price / context.config.generation.max_new_tokens


def trial_grid(context: RunContext) -> list[SteeringConfig]:
    """Every combination of mode, depth and strength; one per block."""
    config = context.config
    if not config.tune.enabled:
        return [with_depth(context, config.steering)]
    depths = {
        context.block_at(depth): depth for depth in config.tune.depths or config.harvest.depths
    }
    return [
        config.steering.model_copy(update={"mode": mode, "strength": strength, "depth": depth})
        for mode in config.tune.modes
        for depth in depths.values()
        for strength in config.tune.strengths
    ]


def trial_name(settings: SteeringConfig) -> str:
    """A short label, also the trial's directory."""
    if settings.mode == "none":
        return "none"
    depth = "" if settings.depth is None else f"-depth{settings.depth:g}"
    return f"{settings.mode}{depth}-strength{settings.strength:g}"


def choose(trials: list[Trial], base: SteeringConfig) -> SteeringConfig:
    """The setting of most utility among those that beat greedy by an interval, or ``none``."""
    gains = [trial for trial in trials if trial.is_gain]
    if not gains:
        return base.model_copy(update={"mode": "none"})
    best = max(gains, key=lambda trial: trial.metrics.utility)
    return best.settings


def best_of_each_mode(context: RunContext) -> list[SteeringConfig]:
    """The setting of most utility of every mode tried; those that gained nothing included."""
    trials = load_report(context.stage(TUNE))["trials"]
    best: dict[str, Any] = {}
    for trial in sorted(trials, key=lambda t: -t["metrics"]["utility"]):
        best.setdefault(
            trial["settings"]["mode"], trial["settings"]
        )  # of equals the first, as chosen
    return [SteeringConfig.model_validate(best[mode]) for mode in sorted(best)]


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
                        }
                        for trial in trials
                    ],
                }
            )
        ),
    )
