"""What validation tried and what came of it, and the states that trials may start from.

A validation directory holds the greedy rollouts of the harvest split (set ``null``) and a set a round,
``round-00`` and so on: the round's plan, the rollouts of its trials with their states, and a table of
what each trial came to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tables import load_table, save_table
from stir_train.errors import ArtifactError, StageError
from stir_train.stores.rollouts import RolloutStore, chunk_file
from stir_train.stores.states import LazyStates, StateLabels, StateStore
from stir_train.types.rollout import GradedRollout, RolloutOutcome
from stir_train.types.steering import UNSTEERED, Intervention, PlannedTrial

GREEDY_SET = "null"
"""The set of greedy rollouts without an impulse."""


def round_set(number: int) -> str:
    """The set that holds a round of trials."""
    return f"round-{number:02d}"


def selection_set(number: int, block: int, strength: float) -> str:
    """The set of what one controller answered before a round, when blocks are chosen."""
    return f"{round_set(number)}/block-{block}-strength-{strength:g}"


def trials_file(number: int, chunk: int) -> str:
    """Name of a chunk of trials; where it is whole, the chunk is."""
    return chunk_file("trials", round_set(number), chunk, ".parquet")


def plan_file(number: int) -> str:
    """Name of a round's plan."""
    return f"{round_set(number)}/plan.parquet"


@dataclass(frozen=True)
class InterventionData:
    """Trajectories of the harvest split with the control-point states that trials may start from.

    Attributes:
        graded: The greedy rollouts, one a prompt, then what each trial so far came to.
        labels: Of the states of greedy rollouts, and of trials after their last impulse; a state's
            rollout is a row of ``graded``.
        states: These states, on disk.
        trials: What has been tried; ``state`` is a row of ``states``.
    """

    graded: list[GradedRollout]
    labels: StateLabels
    states: LazyStates
    trials: list[Intervention]

    @property
    def outcomes(self) -> list[RolloutOutcome]:
        """How each of ``graded`` ended."""
        return [item.outcome for item in self.graded]

    def steered(self) -> Int[Tensor, "S"]:
        """For each state, the block that was steered on the way there, or ``UNSTEERED``."""
        last = [item.rollout.impulses[-1:] for item in self.graded]
        by = torch.tensor([made[0].block if made else UNSTEERED for made in last])
        return by[self.labels.rollout]


class InterventionStore:
    """The trials of one validation directory, finished or still being made."""

    def __init__(self, stage: StageDir) -> None:
        self.stage = stage
        self._rollouts, self._states = RolloutStore(stage), StateStore(stage)

    def num_rounds(self) -> int:
        """Rounds that were planned so far."""
        names, number = set(self.stage.names()), 0
        while plan_file(number) in names:
            number += 1
        return number

    def plan(self, number: int) -> list[PlannedTrial]:
        """The trials that a round was planned to make, in the order in which it makes them."""
        return load_table(self.stage.verified(plan_file(number)), PlannedTrial)

    def trials(self, number: int) -> list[Intervention]:
        """What a round's trials came to, in the order of its plan.

        Raises:
            ArtifactError: If some are not there.
        """
        names, made = set(self.stage.names()), list[Intervention]()
        for chunk in range(self._rollouts.num_chunks(round_set(number))):
            if trials_file(number, chunk) in names:
                path = self.stage.verified(trials_file(number, chunk))
                made += load_table(path, Intervention)
        num_planned = len(self.plan(number))
        if len(made) != num_planned:
            raise ArtifactError(
                f"{self.stage.path}: round {number} planned {num_planned} trials, {len(made)} are "
                f"there; run the {self.stage.name} stage again, which makes what it lacks"
            )
        return made

    def read(self, num_rounds: int | None = None) -> InterventionData:
        """Greedy rollouts and the trials of the first rounds; their states stay on disk.

        Args:
            num_rounds: How many; None takes every round.

        Raises:
            ArtifactError: If a chunk is missing or damaged.
            StageError: If no greedy rollout reaches a control point.
        """
        graded = self._rollouts.read(GREEDY_SET)
        labels = [self._states.labels(GREEDY_SET)]
        states = [self._states.lazy(GREEDY_SET)]
        trials: list[Intervention] = []
        for number in range(self.num_rounds() if num_rounds is None else num_rounds):
            planned = self.plan(number)
            if not planned:
                continue
            trials += self.trials(number)
            made = self._rollouts.read(round_set(number))
            found = self._states.labels(round_set(number))
            kept = _after_last_impulse(found, made)
            labels.append(found.select(kept).shifted(len(graded)))
            states.append(self._states.lazy(round_set(number), kept))
            graded += made
        data = InterventionData(
            graded, StateLabels.concatenate(labels), LazyStates.concatenate(states), trials
        )
        if not len(data.labels):
            raise StageError("greedy rollouts reach no control point; there is nowhere to steer")
        return data


def save_plan(stage: StageDir, number: int, plan: Sequence[PlannedTrial]) -> None:
    """Write what a round tries."""
    save_table(stage, plan_file(number), PlannedTrial, plan)


def save_trials(stage: StageDir, number: int, chunk: int, trials: Sequence[Intervention]) -> None:
    """Write what a chunk of trials came to; do it last, since it says that the chunk is whole."""
    save_table(stage, trials_file(number, chunk), Intervention, trials)


def _after_last_impulse(labels: StateLabels, trials: Sequence[GradedRollout]) -> Bool[Tensor, "S"]:
    last = torch.tensor([trial.rollout.impulses[-1].token_index for trial in trials])
    return labels.token_index > last[labels.rollout]
