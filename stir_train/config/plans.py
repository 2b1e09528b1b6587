"""What each stage would do under a configuration, with counts: the lines of ``--dry-run``. Torch-free."""

from __future__ import annotations

from stir_train.config.run import RunConfig


def rollout(config: RunConfig) -> str:
    """How many rollouts and at most how many tokens, and at which depths states are kept."""
    num_problems, num_samples = config.splits.num_harvest, config.rollout.num_samples
    num_rollouts = num_problems * num_samples
    depths = ", ".join(f"{depth:g}" for depth in config.harvest.depths)
    source = config.external.file or config.external.server
    sampled = f", sampled by {source}" if source else ""
    return (
        f"{num_problems} problems x {num_samples} samples = {num_rollouts} rollouts{sampled}, at most "
        f"{num_rollouts * config.generation.max_new_tokens:,} tokens; states at depths {depths}"
    )


def directions(config: RunConfig) -> str:
    """Which rollouts are differentiated, at which depths and places, and in how many steps."""
    depths = ", ".join(f"{depth:g}" for depth in config.direction_depths)
    later = config.directions.num_steps - 1
    num_rollouts = config.splits.num_harvest * config.rollout.num_samples
    steps = f"; then {later} x {num_rollouts} rollouts under what was found" if later else ""
    return (
        "gradients of rollouts of problems with unequal rewards, at depths "
        f"{depths} and {', '.join(config.direction_places)}; "
        f"{config.directions.num_permutations} permutations{steps}"
    )


def harvest(config: RunConfig) -> str:
    """How many right and wrong rollouts a contrast compares, at how many control points."""
    return (
        f"contrast {config.harvest.num_positive} right with {config.harvest.num_negative} wrong at "
        f"up to {config.control_points.max_points} points"
    )


def basis(config: RunConfig) -> str:
    """How entries are selected, how many a block, and what they add."""
    added = "reward gradients" if config.steers_along_gradients else "differences of means"
    return (
        f"{config.basis.selection} selection of up to {config.basis.size} entries a block, which add "
        f"{added}"
    )


def validate(config: RunConfig) -> str:
    """How many rounds of how many paired trials; nothing where it is off."""
    if not config.validation.enabled:
        return "off; every entry is kept"
    return (
        f"{config.validation.num_rounds} rounds of {config.validation.trials_per_round} paired "
        "trials"
    )


def value(config: RunConfig) -> str:
    """How many heads a block, and at most how many steps they are fitted."""
    return f"{config.value.num_members} heads a block, at most {config.value.num_steps} steps"


def tune(config: RunConfig) -> str:
    """How many settings are tried on how many problems."""
    num_settings = config.num_tried_settings
    fewer = "; the worse half answers fewer" if config.tune.num_halvings else ""
    ranked = "; at most, since replays rank them first" if config.ranks_by_replays else ""
    return (
        f"{num_settings} settings x {config.splits.num_tune} problems, greedy beside them{fewer}"
        f"{ranked}"
    )


def steer(config: RunConfig) -> str:
    """How many steered rollouts are sampled, of how many problems."""
    num_problems, num_samples = config.splits.num_harvest, config.distill.num_samples
    return (
        f"{num_problems} problems x {num_samples} samples = {num_problems * num_samples} steered "
        "rollouts"
    )


def distill(config: RunConfig) -> str:
    """How large the adapter is and how long it is trained."""
    distill = config.distill
    return (
        f"LoRA rank {distill.rank}, {distill.num_steps} steps of {distill.batch_size} sequences; "
        "export and verify"
    )


def baselines(config: RunConfig) -> str:
    """Which methods are tuned on how many problems."""
    return f"{', '.join(config.baselines.names)}: tuned on {config.splits.num_tune} problems"


def evaluate(config: RunConfig) -> str:
    """How many methods answer how many problems."""
    num_methods = 1 + config.num_steered_methods
    num_methods += len(config.baselines.names) + len(config.evaluate.variants)
    num_methods += config.distill.enabled * (1 + len(config.distill.also))
    return f"{num_methods} methods x {config.splits.num_test} held-out problems"


def report(_config: RunConfig) -> str:
    """The report is one page whatever the settings."""
    return "one HTML page"
