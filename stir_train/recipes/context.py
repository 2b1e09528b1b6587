"""What every stage of a run shares: config, directory, model, splits, sinks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from rich.console import Console

from stir_train.artifacts.run_dir import RunDir, StageDir, StageInputs
from stir_train.config.inputs import TaskConfig
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.config.run import RunConfig
from stir_train.data.control_points import ControlPointAutomaton, build_automaton
from stir_train.data.grading import Grader
from stir_train.data.prompts import (
    SplitName,
    cut_splits,
    render_prompts,
    require_disjoint,
    split_sha256,
)
from stir_train.distributed.team import Team
from stir_train.distributed.world import World
from stir_train.errors import ModelError
from stir_train.generation.engine import DecodeEngine
from stir_train.models.blocks import resolve_depth
from stir_train.models.load import LoadedModel, ModelDescription, describe_model, load_model
from stir_train.monitoring.console import good
from stir_train.monitoring.metrics import Metrics
from stir_train.recipes.problems import read_problems
from stir_train.steering.artifacts import SteeringArtifacts
from stir_train.train.checkpoint import CheckpointFile
from stir_train.types.rollout import Prompt

PROBLEMS_FILE = "problems.json"
"""Ids of the problems a stage was made from, by split."""


@dataclass
class RunContext:
    """A run being worked on. Model and splits are loaded on first use.

    Attributes:
        config: Everything the run depends on.
        run_dir: Where it lives.
        attempt: This attempt's log directory.
        world: The processes that work on it together.
        is_worker: This process only makes chunks, beside others that share nothing but the disk.
        metrics: Sinks; on other ranks than 0 they swallow everything.
        console: Where sentences for people go.
        students: Engine over a distilled student by name, once something needed it.
        team: The ranks that hold this rank's copy of the model with it, while they work together.
    """

    config: RunConfig
    run_dir: RunDir
    attempt: Path
    world: World
    is_worker: bool
    metrics: Metrics
    console: Console
    students: dict[str, DecodeEngine] = field(default_factory=dict)
    team: Team | None = None
    _num_works: int = 0
    _graders: dict[str, Grader] = field(default_factory=dict)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The frozen base model.

        Raises:
            ModelError: If what was loaded is not what its files describe.
        """
        loaded = load_model(self.config.model, self.world)
        if loaded.identity != self.described.identity:
            raise ModelError(
                f"{self.config.model.name} was loaded as {loaded.identity}, its files describe "
                f"{self.described.identity}; they changed meanwhile, or this is a bug"
            )
        return loaded

    @cached_property
    def described(self) -> ModelDescription:
        """The base model without its weights, which many a stage can do without."""
        return describe_model(self.config.model)

    @cached_property
    def splits(self) -> dict[SplitName, list[Prompt]]:
        """Rendered prompts per split, checked disjoint."""
        cut = cut_splits(read_problems(self.config), self.config.splits)
        tokenizer = self.described.tokenizer
        splits = {
            name: render_prompts(problems, self.config.task, tokenizer)
            for name, problems in cut.items()
        }
        require_disjoint(splits)
        return splits

    @cached_property
    def automaton(self) -> ControlPointAutomaton:
        """Finds control points for this model's tokenizer."""
        return build_automaton(
            self.described.tokenizer,
            self.config.control_points,
            vocab_size=self.described.vocab_size,
        )

    @property
    def grader(self) -> Grader:
        """Grades responses of the run's task."""
        return self.grader_of(self.config.task)

    def grader_of(self, task: TaskConfig) -> Grader:
        """Grades responses of a task; closed with the run."""
        key = task.model_dump_json()
        if key not in self._graders:
            self._graders[key] = Grader(task)
        return self._graders[key]

    def checkpoints(self, stage: StageDir, name: str) -> CheckpointFile:
        """Where a stage's fit is saved until the stage is done."""
        return CheckpointFile(
            self.run_dir.checkpoints(stage.name) / name,
            self.config.train.checkpoint_every_steps,
            stage.inputs_sha256(),
        )

    def next_work_number(self) -> int:
        """A number for each set of work of this process, the same on every rank."""
        self._num_works += 1
        return self._num_works

    def close(self) -> None:
        """Stop what the run holds open."""
        for grader in self._graders.values():
            grader.close()

    @cached_property
    def engine(self) -> DecodeEngine:
        """The decoding engine over the base model."""
        return self.make_engine(self.loaded)

    def make_engine(self, loaded: LoadedModel) -> DecodeEngine:
        """An engine over the base model or a student, within the run's limits."""
        limits = self.config.generation
        return DecodeEngine(
            loaded, max_rows=limits.max_rows, max_cache_tokens=limits.max_cache_tokens
        )

    @cached_property
    def steering(self) -> SteeringArtifacts:
        """The run's basis, heads and choice, once their stages are finished.

        Raises:
            ArtifactError: If the run's rollouts had another task or other control points.
        """
        self.require_settings_of_rollouts()
        return SteeringArtifacts(self.run_dir, self.described.identity)

    @property
    def captured_blocks(self) -> tuple[int, ...]:
        """The harvested depths as ascending block indices."""
        return tuple(sorted({self.block_at(depth) for depth in self.config.harvest.depths}))

    def block_at(self, depth: float) -> int:
        """The block at a depth fraction."""
        return resolve_depth(depth, self.described.identity.num_blocks)

    def stage(self, name: str) -> StageDir:
        """A stage's directory."""
        return self.run_dir.stage(name)

    @property
    def team_size(self) -> int:
        """Ranks that decode the same work together, because each holds a part of the model."""
        return self.config.model.shards

    @property
    def is_sharded(self) -> bool:
        """Whether ranks can run the model only together."""
        return self.config.model.sharding != "none"

    def is_mine_to_write(self, what: str, token_ids: Sequence[Sequence[int]]) -> bool:
        """After decoding: whether this rank grades and writes it, and not its team's leader.

        Raises:
            StageError: If the team decoded different tokens.
        """
        if self.team is None:
            return True
        digest = hashlib.sha256(json.dumps([list(ids) for ids in token_ids]).encode()).hexdigest()
        self.team.require_agreement(what, digest)
        return self.team.is_led_by_me

    def require_settings_of_rollouts(self) -> None:
        """Check that what everything goes by, task and control points, is what the rollouts had.

        Raises:
            ArtifactError: If it is not.
        """
        sections = {"task": self.config.task, "control_points": self.config.control_points}
        wanted = {name: section.model_dump(mode="json") for name, section in sections.items()}
        self.stage(STAGE_DIRECTORIES["rollout"]).require_settings(wanted)

    def begin(
        self,
        name: str,
        settings: Mapping[str, BaseModel | Any],
        *,
        upstream: tuple[str, ...] = (),
        splits: tuple[SplitName, ...] = (),
        decodes: bool = True,
    ) -> StageDir | None:
        """Open a stage for its settings and sources; None when it is already complete. Collective.

        Task and control points, on which every stage depends, must be those of the rollouts.

        Args:
            name: The stage's directory.
            settings: What it depends on.
            upstream: Stages that it reads.
            splits: Splits that it reads.
            decodes: Whether it runs the model.
        """
        stage = self.stage(name)
        has_work = self.world.on_main(
            f"begin {name}", lambda: self._begin(stage, settings, upstream, splits)
        )
        if has_work:
            if self.is_sharded and decodes:
                _ = self.loaded  # takes all ranks, so not when one of them first asks for it
            return stage
        self.console.print(good(f"{name}: done before, nothing to do"))
        return None

    def _begin(
        self,
        stage: StageDir,
        settings: Mapping[str, BaseModel | Any],
        upstream: tuple[str, ...],
        splits: tuple[SplitName, ...],
    ) -> bool:
        """Write what the stage is made from, or check it; whether there is work left."""
        if stage.name != STAGE_DIRECTORIES["rollout"]:
            self.require_settings_of_rollouts()
        sources = {"model": self.described.identity.fingerprint()}
        sources |= {f"stage {other}": self.stage(other).fingerprint() for other in upstream}
        sources |= {f"split {split}": split_sha256(self.splits[split]) for split in splits}
        config = {
            key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for key, value in settings.items()
        }
        has_work = stage.begin(
            StageInputs(config=config, sources=sources), alone=not self.is_worker
        )
        if has_work:
            used = {split: sorted(p.prompt_id for p in self.splits[split]) for split in splits}
            if used and not stage.has(PROBLEMS_FILE):
                with stage.writing(PROBLEMS_FILE) as path:
                    path.write_text(json.dumps(used, indent=1) + "\n", encoding="utf-8")
        return has_work

    def problems_used(self, names: Sequence[str]) -> dict[str, set[str]]:
        """Ids of the problems that went into the named stages, by stage and split."""
        used: dict[str, set[str]] = {}
        for name in names:
            stage = self.stage(name)
            if stage.has(PROBLEMS_FILE):
                held = json.loads(stage.file(PROBLEMS_FILE).read_text(encoding="utf-8"))
                used |= {f"{name} ({split})": set(ids) for split, ids in held.items()}
        return used

    def report_done(self, stage: StageDir, summary: Mapping[str, Any], sentence: str) -> None:
        """Finish a stage, log its figures, tell the user. Rank 0 only."""
        stage.finish(summary)
        self.run_dir.forget_progress(stage.name)
        scalars = {k: v for k, v in summary.items() if isinstance(v, int | float | str)}
        self.metrics.log(stage.name, scalars | {"sha256": stage.fingerprint()})
        self.console.print(good(f"{stage.name}: {sentence}"))


def set_threads(config: RunConfig) -> None:
    """Fix the number of CPU threads, on which bitwise repeatability depends."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
