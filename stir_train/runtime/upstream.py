"""What lies before a stage in its run: sources that it lacks, or a finding that ended the run. Torch-free."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.pipeline import STAGE_NAMES, STAGES, stages_off
from stir_train.config.run import RunConfig


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
        stage = run_dir.stage(name)
        if name not in off and stage.is_complete and (reason := stage.ends_run()) is not None:
            return End(name, reason)
    return None


def require_sources(config: RunConfig, names: Collection[str]) -> None:
    """Check, before a run is begun, that what the named stages read is there or among them.

    A run that ended early passes: its end says more than what is missing after it.

    Raises:
        ArtifactError: If a source is missing or unfinished; names the first.
    """
    run_dir = RunDir(config.directory)
    if end_of_run(run_dir, stages_off(config)) is not None:
        return
    for stage in STAGES:
        if stage.name in names and stage.is_on(config):
            for source in stage.sources(config):
                if source not in names:
                    run_dir.stage(source).require_complete()
