"""What of the configuration, and which stages, are read while something runs: what a stage must declare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from stir_train.artifacts.run_dir import RunDir, StageDir
from stir_train.config.base import FrozenConfig
from stir_train.config.pipeline import Stage
from stir_train.config.run import RunConfig

RUN_WIDE = frozenset(
    (
        "name",
        "output_dir",
        "model",
        "task",
        "splits",
        "control_points",
        "train",
        "cluster",
        "tracking",
    )
)
"""Sections that no stage declares: the model, the problems and the rollouts' task and control points are
checked of every stage by themselves, and the others change no artifact."""
_WHOLE = ("__dict__", "model_dump", "model_dump_json", "model_copy")


class Reads:
    """What was read.

    Attributes:
        names: Dotted names of settings; a section read as a whole goes by its own name.
        stages: Stages whose directories were asked for.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.stages: set[str] = set()
        self._sections: dict[int, tuple[str, FrozenConfig]] = {}

    def note(self, owner: FrozenConfig, attribute: str, value: Any) -> None:
        """Note one attribute of one model."""
        name = attribute if isinstance(owner, RunConfig) else self.name_of(owner)
        if name is None:
            return  # no part of the run's configuration: settings that an artifact holds
        if not isinstance(owner, RunConfig):
            name = name if attribute in _WHOLE else f"{name}.{attribute}"
        if isinstance(value, FrozenConfig):
            self._sections[id(value)] = name, value  # held, so that no other takes its id
        elif isinstance(owner, RunConfig) or attribute in {*_WHOLE, *type(owner).model_fields}:
            self.names.add(name)

    def name_of(self, section: object) -> str | None:
        """The dotted name of a section that was reached, or None."""
        found = self._sections.get(id(section))
        return None if found is None else found[0]


@contextmanager
def recording() -> Iterator[Reads]:
    """Record what is read of any `RunConfig`, down to single settings."""
    reads = Reads()
    original = FrozenConfig.__getattribute__

    def noted(self: FrozenConfig, attribute: str) -> Any:
        value = original(self, attribute)
        whole = () if type(self) is RunConfig else _WHOLE
        if attribute in whole or attribute in type(self).model_fields:
            reads.note(self, attribute, value)
        return value

    open_stage = RunDir.stage

    def opened(self: RunDir, name: str) -> StageDir:
        reads.stages.add(name)
        return open_stage(self, name)

    with (
        mock.patch.object(FrozenConfig, "__getattribute__", noted),
        mock.patch.object(RunDir, "stage", opened),
    ):
        yield reads


def declared_by(stage: Stage, config: RunConfig) -> set[str]:
    """Settings that a stage's declaration covers: sections by name, and what single values are made from."""
    with recording() as reads:
        settings = stage.settings(config)
    sections = {reads.name_of(value) for value in settings.values()}
    return reads.names | {name for name in sections if name is not None}


def undeclared(read: set[str], declared: set[str]) -> set[str]:
    """What was read that neither is declared, alone or by its section, nor belongs to the whole run."""

    def covered(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:end]) in declared | RUN_WIDE for end in range(1, len(parts) + 1))

    return {name for name in read if not covered(name)}
