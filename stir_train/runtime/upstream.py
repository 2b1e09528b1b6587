"""What lies before a stage in its run: sources that it lacks, or a finding that leaves it no work. Torch-free.

Tuning that chose `none` leaves out steered rollouts and the students that would learn from them; a stage that
ends the run leaves out all after it but the report, which says why.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.pipeline import STAGE_NAMES, STAGES, Stage, stage, stages_from, stages_off
from stir_train.config.run import RunConfig

WHY = "tuning chose `none`, so the run abstains from steering"
PLAIN_INSTEAD = (
    "distill.objective.samples=plain trains a student on the base's own right and short answers"
)


@dataclass(frozen=True)
class End:
    """Where a run ended early.

    Attributes:
        stage: The finished stage that found so.
        reason: Why nothing after it can be made, as a sentence.
    """

    stage: str
    reason: str


def end_of_run(run_dir: RunDir, off: Collection[str]) -> End | None:
    """The first finished stage, of those that are not off, after which nothing can be made."""
    for name in STAGE_NAMES:
        if name in off:
            continue
        made = run_dir.stage(name)
        if made.is_complete and (reason := made.ends_run()) is not None:
            return End(name, reason)
    return None


def abstains(run_dir: RunDir) -> bool:
    """Whether tuning is finished and chose not to steer."""
    tune = run_dir.stage("tune")
    return tune.is_complete and tune.summary()["mode"] == "none"


def students_taught(run_dir: RunDir, config: RunConfig) -> tuple[str, ...]:
    """Names of the students that a run trains, the exported one, which has none, first.

    Where the run abstains, those that would learn from steered answers are left out.
    """
    if not config.distill.enabled:
        return ()
    asked = {"": config.distill.objective, **config.distill.also}
    has_teacher = not abstains(run_dir)
    return tuple(
        name for name, objective in asked.items() if has_teacher or objective.samples != "steered"
    )


def stages_left_out(run_dir: RunDir, config: RunConfig) -> dict[str, str]:
    """The stages that are on and that a run leaves out for what it found, with the reason."""
    end = end_of_run(run_dir, stages_off(config))
    if end is not None:
        after = stages_from(end.stage)[1:-1]
        return {name: end.reason for name in after if stage(name).is_on(config)}
    if not config.distill.enabled or not abstains(run_dir):
        return {}
    skipped = {"steer": f"steer: skipped: {WHY}"}
    if not students_taught(run_dir, config):
        skipped["distill"] = (
            f"distill: skipped: {WHY}, and there is nothing to distil; {PLAIN_INSTEAD}"
        )
    return skipped


def sources_of(found: Stage, run_dir: RunDir, config: RunConfig) -> list[str]:
    """The stages that a stage reads in a run, without those that the run leaves out."""
    left_out = stages_left_out(run_dir, config)
    return [name for name in found.sources(config) if name not in left_out]


def upstream_of(run_dir: RunDir, config: RunConfig, name: str) -> tuple[str, ...]:
    """The stages that a stage is made from, and those that they are made from, in pipeline order."""
    found: set[str] = set()
    left = [name]
    while left:
        new = set(sources_of(stage(left.pop()), run_dir, config)) - found
        found |= new
        left += new
    return tuple(other for other in STAGE_NAMES if other in found)


def require_sources(config: RunConfig, names: Collection[str]) -> None:
    """Check, before a run is begun, that what the named stages read is there or among them.

    A run that ended early passes: its end says more than what is missing after it.

    Raises:
        ArtifactError: If a source is missing or unfinished; names the first.
    """
    run_dir = RunDir(config.directory)
    if end_of_run(run_dir, stages_off(config)) is not None:
        return
    left_out = stages_left_out(run_dir, config)
    for wanted in STAGES:
        if wanted.name in names and wanted.is_on(config) and wanted.name not in left_out:
            for source in sources_of(wanted, run_dir, config):
                if source not in names:
                    run_dir.stage(source).require_complete()
