"""A run being worked on: its directory, ranks, sinks and splits, and what it loads lazily."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console

from stir_train.artifacts.attempts import ProgressRecord, save_progress
from stir_train.artifacts.run_dir import RunDir, StageDir
from stir_train.config.inputs import SplitName
from stir_train.config.pipeline import stage as stage_of
from stir_train.config.run import RunConfig
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import (
    cut_splits,
    first_problems,
    render_prompts,
    require_disjoint,
    require_unseen,
)
from stir_train.distributed.model_parallel import ModelParallelGroup
from stir_train.distributed.world import World
from stir_train.monitoring.console import LINE_SECONDS, Meter, progress
from stir_train.monitoring.metrics import Metrics
from stir_train.runtime.problems import read_problems
from stir_train.runtime.resources import Resources
from stir_train.steering.artifacts import SteeringArtifacts
from stir_train.stores.steering import SteeringStore
from stir_train.stores.steering_files import RunFiles
from stir_train.train.checkpoint import CheckpointFile
from stir_train.types.rollout import Prompt

LEARNED_FROM: tuple[SplitName, ...] = ("harvest", "tune")
"""Splits that a run learns from, or chooses by."""
PROBLEMS_FILE = "problems.json"
"""Ids of the problems a stage was made from, by split."""


@dataclass(frozen=True)
class Outcome:
    """What a stage came to.

    Attributes:
        summary: Its figures, JSON-ready, kept in the manifest.
        sentence: The same for people.
        ends_run: Why nothing after it can be made, if so: a finding, not a failure.
    """

    summary: Mapping[str, object]
    sentence: str
    ends_run: str | None = None


Finish = Callable[[], Outcome]
"""Writes a stage's last files and says what it came to; called on rank 0 once all ranks are done."""


@dataclass
class RunContext:
    """A run being worked on.

    Attributes:
        config: Everything the run depends on.
        run_dir: Where it lives.
        attempt: This attempt's log directory; the run's own where it is only read.
        world: The processes that work on it together.
        is_worker: This process only makes chunks, beside others that share nothing but the disk.
        metrics: Sinks; on other ranks than 0 they swallow everything.
        console: Where sentences for people go.
        resources: What is loaded on first use.
        model_parallel_group: The ranks that hold this rank's copy of the model with it, while they work
            together.
    """

    config: RunConfig
    run_dir: RunDir
    attempt: Path
    world: World
    is_worker: bool
    metrics: Metrics
    console: Console
    resources: Resources
    model_parallel_group: ModelParallelGroup | None = None
    _num_works: int = 0

    @cached_property
    def problems(self) -> list[SourceProblem]:
        """Every problem that the task offers."""
        return read_problems(self.config)

    @cached_property
    def out_of_domain(self) -> dict[str, list[Prompt]]:
        """The problems of every task outside the harvest, rendered.

        Raises:
            DataError: If there are too few, or some are in the splits that a run learns from.
        """
        used = {
            f"the run's {split} split": {prompt.prompt_id for prompt in self.splits[split]}
            for split in LEARNED_FROM
        }
        found = {}
        for name, asked in self.config.evaluate.out_of_domain.items():
            other: RunConfig = self.config.model_copy(update={"task": asked.task})
            problems = first_problems(
                read_problems(other), asked.num_problems, seed=other.splits.seed
            )
            tokenizer = self.resources.described.tokenizer
            found[name] = render_prompts(problems, asked.task, tokenizer)
            require_unseen(found[name], used)
        return found

    @cached_property
    def splits(self) -> dict[SplitName, list[Prompt]]:
        """Rendered prompts per split, checked disjoint."""
        cut = cut_splits(self.problems, self.config.splits)
        tokenizer = self.resources.described.tokenizer
        splits = {
            name: render_prompts(problems, self.config.task, tokenizer)
            for name, problems in cut.items()
        }
        require_disjoint(splits)
        return splits

    @cached_property
    def steering(self) -> SteeringArtifacts:
        """The run's basis, heads and choice, once their stages are finished.

        Raises:
            ArtifactError: If the run's rollouts had another task or other control points.
        """
        self.require_settings_of_rollouts()
        store = SteeringStore(RunFiles(self.run_dir), self.resources.described.identity)
        return SteeringArtifacts(store)

    @contextmanager
    def progress(self, title: str, total: int, unit: str) -> Iterator[Meter]:
        """Show how far work is, here and to `stir-train status`; arguments as `monitoring.console.progress`."""
        said = 0.0

        def note(meter: Meter) -> None:
            nonlocal said
            now = time.time()
            if now - said < LINE_SECONDS and meter.done < total:
                return
            said = now
            save_progress(
                self.attempt, ProgressRecord(title, meter.done, total, unit, meter.speed, now)
            )

        watch = note if self.world.is_main else None
        workers = max(1, self.world.size // self.config.model.shards)
        with progress(self.console, title, total, unit, watch=watch, num_workers=workers) as meter:
            yield meter

    def stage(self, name: str) -> StageDir:
        """A stage's directory."""
        return self.run_dir.stage(name)

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

    @property
    def model_parallel_size(self) -> int:
        """Ranks that decode the same work together, because each holds a part of the model."""
        return self.config.model.shards

    @property
    def is_sharded(self) -> bool:
        """Whether ranks can run the model only together."""
        return self.config.model.sharding != "none"

    def is_mine_to_write(self, what: str, token_ids: Sequence[Sequence[int]]) -> bool:
        """After decoding: whether this rank grades and writes it, and not its group's leader.

        Raises:
            StageError: If the group decoded different tokens.
        """
        if self.model_parallel_group is None:
            return True
        digest = hashlib.sha256(json.dumps([list(ids) for ids in token_ids]).encode()).hexdigest()
        self.model_parallel_group.require_agreement(what, digest)
        return self.model_parallel_group.is_led_by_me

    def require_settings_of_rollouts(self) -> None:
        """Check that what everything goes by, task and control points, is what the rollouts had.

        Raises:
            ArtifactError: If it is not.
        """
        sections = {"task": self.config.task, "control_points": self.config.control_points}
        wanted = {name: section.model_dump(mode="json") for name, section in sections.items()}
        self.stage("rollout").require_settings(wanted)

    def problems_used(self, names: Sequence[str]) -> dict[str, set[str]]:
        """Ids of the problems that went into the named stages, those that were made, by stage and split.

        Raises:
            ArtifactError: If a stage's list of them is missing or damaged.
        """
        used: dict[str, set[str]] = {}
        for name in names:
            directory = self.stage(name)
            if directory.path.exists() and stage_of(name).splits:
                path = directory.verified(PROBLEMS_FILE)
                held = json.loads(path.read_text(encoding="utf-8"))
                used |= {f"{name} ({split})": set(ids) for split, ids in held.items()}
        return used


def set_threads(config: RunConfig) -> None:
    """Fix the number of CPU threads, on which bitwise repeatability depends."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
