"""What a run would do, from its configuration and directory alone."""

from __future__ import annotations

from dataclasses import dataclass

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.config.run import RunConfig


@dataclass(frozen=True)
class PlannedStage:
    """One line of a plan.

    Attributes:
        verb: The command that runs it.
        state: ``done``, ``unfinished`` or ``to do``.
        work: What it does, with counts.
    """

    verb: str
    state: str
    work: str


def plan_run(config: RunConfig) -> list[PlannedStage]:
    """Plan every stage; counts are exact, tokens are upper bounds."""
    run_dir = RunDir(config.directory)
    work = _work(config)
    planned = []
    for verb, directory in STAGE_DIRECTORIES.items():
        stage = run_dir.stage(directory)
        unfinished = "unfinished" if stage.path.exists() else "to do"
        state = "done" if stage.is_complete else unfinished
        planned.append(PlannedStage(verb, state, work[verb]))
    return planned


def _work(config: RunConfig) -> dict[str, str]:
    splits, budget = config.splits, config.generation.max_new_tokens
    rollouts = splits.num_harvest * config.rollout.num_samples
    steered = splits.num_harvest * config.distill.num_samples
    trials = len(config.tried_settings) if config.tune.enabled else 1
    methods = 3 + 3 * config.evaluate.controls + config.distill.enabled + len(config.tune.modes) - 1
    methods += len(config.baselines.names)
    captured = ", ".join(f"{depth:g}" for depth in config.harvest.depths)
    return {
        "rollout": f"{splits.num_harvest} problems x {config.rollout.num_samples} samples = "
        f"{rollouts} rollouts, at most {rollouts * budget:,} tokens; states at depths {captured}",
        "harvest": f"contrast {config.harvest.num_positive} right with "
        f"{config.harvest.num_negative} wrong at up to {config.control_points.max_points} points",
        "basis": f"{config.basis.selection} selection of up to {config.basis.size} entries a block",
        "validate": f"{config.validation.num_rounds} rounds of {config.validation.trials_per_round} "
        "paired replays"
        if config.validation.enabled
        else "off",
        "value": f"{config.value.num_members} heads a block, at most {config.value.num_steps} steps",
        "tune": f"{trials} settings x {splits.num_tune} problems, greedy beside them"
        + ("; the worse half answers fewer" if config.tune.num_halvings else ""),
        "steer": f"{splits.num_harvest} problems x {config.distill.num_samples} samples = "
        f"{steered} steered rollouts"
        if config.distill.enabled
        else "off",
        "distill": f"LoRA rank {config.distill.rank}, {config.distill.num_steps} steps of "
        f"{config.distill.batch_size} sequences; export and verify"
        if config.distill.enabled
        else "off",
        "baselines": f"{', '.join(config.baselines.names)}: tuned on {splits.num_tune} problems"
        if config.baselines.names
        else "off",
        "evaluate": f"{methods} methods x {splits.num_test} held-out problems",
        "report": "one HTML page",
    }
