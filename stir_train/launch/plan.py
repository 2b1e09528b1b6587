"""What a run would do, from its configuration and directory alone."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from stir_train.artifacts.run_dir import RunDir, StageDir
from stir_train.config.pipeline import STAGES, Stage, settings_as_json
from stir_train.config.run import RunConfig
from stir_train.errors import ArtifactError
from stir_train.runtime.upstream import stages_left_out


@dataclass(frozen=True)
class PlannedStage:
    """One line of a plan.

    Attributes:
        name: The stage.
        state: ``done``, ``unfinished``, ``to do``, ``to remake``, ``refused``, ``not made`` or ``off``.
        work: What it does, with counts, or why it is not made.
        refusal: Why the run would stop here: the stage was begun with other settings.
    """

    name: str
    state: str
    work: str
    refusal: str = ""


def plan_run(config: RunConfig, *, remade: Collection[str] = ()) -> list[PlannedStage]:
    """Plan every stage; counts are exact, tokens are upper bounds.

    Args:
        config: The run.
        remade: Stages that are discarded first.
    """
    run_dir = RunDir(config.directory)
    left_out = {
        name: reason
        for name, reason in stages_left_out(run_dir, config).items()
        if name not in remade
    }
    return [
        PlannedStage(stage.name, "not made", left_out[stage.name])
        if stage.name in left_out
        else _planned(stage, run_dir.stage(stage.name), config, is_remade=stage.name in remade)
        for stage in STAGES
    ]


def _planned(
    stage: Stage, directory: StageDir, config: RunConfig, *, is_remade: bool
) -> PlannedStage:
    if not stage.is_on(config) and not directory.is_complete:
        return PlannedStage(stage.name, "off", "")
    work = stage.plan(config)
    if not directory.path.exists():
        return PlannedStage(stage.name, "to do", work)
    if is_remade:
        return PlannedStage(stage.name, "to remake", work)
    refusal = _refusal(directory, stage, config) if stage.is_on(config) else ""
    if refusal:
        return PlannedStage(stage.name, "refused", work, refusal)
    return PlannedStage(stage.name, "done" if directory.is_complete else "unfinished", work)


def _refusal(directory: StageDir, stage: Stage, config: RunConfig) -> str:
    """What the stage would say to these settings; empty if it takes them."""
    wanted = json.loads(json.dumps(settings_as_json(stage.settings(config))))
    try:
        directory.require_settings(wanted)
    except ArtifactError as error:
        return str(error)
    return ""
