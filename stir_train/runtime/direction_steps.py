"""Steps of gradient ascent in added vectors: sample under those so far, differentiate there, add.

The first step goes from the plain model, with the recorded rollouts. A later one samples the harvest split
under one vector for each place of `directions.step_norms`, at the block that was best in the first, and
adds the unit gradient found there to the unit vector, at equal weight, where it is more than noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.places import estimated_at
from stir_train.config.steering import VectorAction, VectorSteering
from stir_train.directions.controls import permuted_directions
from stir_train.directions.estimate import Estimate, anything_to_steer, estimate_directions
from stir_train.runtime.answerers import steered_answerer
from stir_train.runtime.context import RunContext
from stir_train.runtime.directions import advantages_of
from stir_train.runtime.generation import GenerationJob, sampling_params
from stir_train.stores.directions import (
    gradients_file,
    load_directions,
    load_gradients,
    save_directions,
)
from stir_train.stores.reports import load_record, load_report, save_record
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.directions import DirectionSet, PlacedVector, RolloutGradients
from stir_train.types.reports import (
    ActingVector,
    DirectionEstimate,
    DirectionsReport,
    DirectionStep,
)

STEP_FILE = "step.json"
VECTORS_FILE = "vectors.safetensors"


@dataclass(frozen=True)
class StepFiles:
    """Where a step's rollouts and gradients are.

    Attributes:
        number: From 1.
        store: Holds the rollouts that it differentiates.
    """

    number: int
    store: RolloutStore

    @property
    def set_name(self) -> str:
        """The set of rollouts in the store."""
        return _prefix(self.number).rstrip("/")

    @property
    def prefix(self) -> str:
        """Directory of its files in the stage of directions."""
        return _prefix(self.number)


def step_files(context: RunContext, stage: StageDir, number: int) -> StepFiles:
    """The files of a step: the first differentiates the rollouts of stage ``rollout``."""
    if number == 1:
        return StepFiles(number, RolloutStore(context.stage("rollout")).require_complete())
    return StepFiles(number, RolloutStore(stage))


def step_gradients(context: RunContext, stage: StageDir, files: StepFiles) -> RolloutGradients:
    """The gradients of all chunks of a step's rollouts."""
    identity = context.resources.described.identity
    return RolloutGradients.concatenate(
        [
            load_gradients(stage.verified(f"{files.prefix}{gradients_file(chunk)}"), identity)
            for chunk in range(files.store.num_chunks(files.set_name))
        ]
    )


def estimate_step(context: RunContext, stage: StageDir, files: StepFiles) -> Estimate | None:
    """Directions from a step's gradients; None if in no problem rewards differ."""
    config = context.config
    worth = advantages_of(context, files.store.read(files.set_name))
    if not worth.by_rollout:
        return None
    return estimate_directions(
        step_gradients(context, stage, files),
        worth,
        seed=config.seed,
        places=config.estimated_places,
        num_permutations=config.directions.num_permutations,
    )


def take_step(context: RunContext, stage: StageDir, number: int) -> bool:
    """Save the vectors after a step and what it found; say whether another step can follow.

    None can follow where nothing that would act was more than noise.
    """
    files = step_files(context, stage, number)
    found = estimate_step(context, stage, files)
    graded = files.store.read(files.set_name)
    step = DirectionStep(
        number=number,
        acting=_acting(context, stage) if number > 1 else (),
        correct_rate=sum(item.grade.correct for item in graded) / len(graded),
        tokens_mean=sum(len(item.rollout.token_ids) for item in graded) / len(graded),
        table=() if found is None else found.table,
    )
    save_record(stage, f"{files.prefix}{STEP_FILE}", step)
    if found is None:
        return False
    passing = _passing(context, step)
    vectors = found.directions
    if number > 1:
        vectors = _added(
            load_vectors(context, stage, number - 1),
            found.directions,
            _stepped(step.acting, passing),
        )
    save_directions(
        stage, f"{files.prefix}{VECTORS_FILE}", vectors, context.resources.described.identity
    )
    return any(_is_at(row, one) for row in passing for one in _acting(context, stage))


def load_step(stage: StageDir, number: int) -> DirectionStep:
    """Read the table of a step of gradient ascent, and the vectors that acted in it."""
    return load_record(stage.verified(f"{_prefix(number)}{STEP_FILE}"), DirectionStep)


def load_vectors(context: RunContext, stage: StageDir, number: int) -> DirectionSet:
    """The unit vectors after a step."""
    identity = context.resources.described.identity
    return load_directions(stage.verified(f"{_prefix(number)}{VECTORS_FILE}"), identity)


def sampling_job(context: RunContext, stage: StageDir, number: int) -> GenerationJob:
    """Samples of the harvest split under the vectors after the step before."""
    depth_of = {context.resources.block_at(d): d for d in context.config.direction_depths}
    actions = tuple(
        VectorAction(place=one.place, depth=depth_of[one.block], strength=one.norm)
        for one in _acting(context, stage)
    )
    vectors = load_vectors(context, stage, number - 1)
    return GenerationJob(
        context.splits["harvest"],
        steered_answerer(context, VectorSteering(actions=actions), directions=vectors),
        sampling_params(context, greedy=False),
        num_samples=context.config.rollout.num_samples,
        prefix=_prefix(number),
    )


def acting_vectors(context: RunContext, stage: StageDir, number: int) -> tuple[PlacedVector, ...]:
    """What was added while a step's rollouts were sampled; nothing in the first."""
    if number == 1:
        return ()
    vectors = load_vectors(context, stage, number - 1)
    return tuple(
        PlacedVector(
            one.block, one.place, one.norm * vectors.vector(one.block, estimated_at(one.place))
        )
        for one in _acting(context, stage)
    )


def shuffled_vectors(context: RunContext) -> DirectionSet:
    """What the steps come to where every one's rewards are shuffled within problems.

    Each shuffles what the run's own step differentiated, and is added where the run's own was.
    """
    stage, seed = context.stage("directions"), context.config.seed
    vectors: DirectionSet | None = None
    for step in load_report(stage, DirectionsReport).steps:
        files = step_files(context, stage, step.number)
        worth = advantages_of(context, files.store.read(files.set_name))
        if not worth.by_rollout:
            break
        gradients = step_gradients(context, stage, files)
        found = permuted_directions(gradients, worth, seed=seed).directions
        if vectors is None:
            vectors = found
        else:
            vectors = _added(vectors, found, _stepped(step.acting, _passing(context, step)))
    assert vectors is not None, "a run without unequal rewards ends before there are controls"
    return vectors


def _prefix(number: int) -> str:
    return "" if number == 1 else f"step-{number}/"


def _passing(context: RunContext, step: DirectionStep) -> list[DirectionEstimate]:
    return anything_to_steer(step.table, significance=context.config.directions.significance)


def _acting(context: RunContext, stage: StageDir) -> tuple[ActingVector, ...]:
    """For each place that steps sample under, the first step's row of the largest relative gain, at its norm."""
    passing = _passing(context, load_step(stage, 1))
    found = []
    for place, share in context.config.directions.step_norms.items():
        best = next((row for row in passing if row.place == estimated_at(place)), None)
        if best is not None:
            found.append(ActingVector(best.block, place, share * best.state_norm))
    return tuple(found)


def _stepped(
    acting: Sequence[ActingVector], passing: Sequence[DirectionEstimate]
) -> list[ActingVector]:
    """Those of the acting vectors that what was found under them is added to: where it is more than noise."""
    return [one for one in acting if any(_is_at(row, one) for row in passing)]


def _added(
    before: DirectionSet, found: DirectionSet, stepped: Sequence[ActingVector]
) -> DirectionSet:
    """The vectors before; to those that step, the unit vectors found under them."""
    directions = before.directions.clone()
    pairs = list(zip(before.blocks.tolist(), before.places, strict=True))
    for one in stepped:
        place = estimated_at(one.place)
        row = pairs.index((one.block, place))
        both = directions[row] + found.vector(one.block, place)
        directions[row] = torch.nn.functional.normalize(both, dim=0)
    return dataclasses.replace(before, directions=directions)


def _is_at(row: DirectionEstimate, one: ActingVector) -> bool:
    return (row.block, row.place) == (one.block, estimated_at(one.place))
