"""What a run would do, from its configuration and directory alone."""

from __future__ import annotations

from dataclasses import dataclass

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.pipeline import STAGES
from stir_train.config.run import RunConfig


@dataclass(frozen=True)
class PlannedStage:
    """One line of a plan.

    Attributes:
        name: The stage.
        state: ``done``, ``unfinished``, ``to do`` or ``off``.
        work: What it does, with counts.
    """

    name: str
    state: str
    work: str


def plan_run(config: RunConfig) -> list[PlannedStage]:
    """Plan every stage; counts are exact, tokens are upper bounds."""
    run_dir = RunDir(config.directory)
    planned = []
    for stage in STAGES:
        directory = run_dir.stage(stage.name)
        if directory.is_complete:
            state = "done"
        elif not stage.is_on(config):
            state = "off"
        else:
            state = "unfinished" if directory.path.exists() else "to do"
        planned.append(
            PlannedStage(stage.name, state, "" if state == "off" else stage.plan(config))
        )
    return planned
