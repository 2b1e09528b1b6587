"""The trajectories that paired replays start from: greedy ones, and those that earlier replays made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tables import load_table, save_table
from stir_train.basis.validate import UNSTEERED, PlannedTrial, StatePool
from stir_train.errors import StageError
from stir_train.generation.backend import ControlSpec, GenerationRequest, PlannedImpulse
from stir_train.recipes.harvest import load_basis, rollout_chunks
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import (
    GenerationJob,
    grade_rollouts,
    load_rollouts,
    load_states,
    num_chunks,
    rollouts_file,
    sampling_params,
    save_states,
    states_file,
)
from stir_train.types.rollout import GradedRollout, Impulse
from stir_train.types.steering import ControlBasis, Intervention
from stir_train.types.trajectory import CapturedStates
from stir_train.value.targets import ValueExamples, build_examples, build_intervened

NULL = "null/"
LONG = 1.25
"""A right rollout is long when it takes this many times the shortest right sample."""


@dataclass(frozen=True)
class InterventionData:
    """Trajectories of the harvest split with the control-point states that trials may start from.

    Attributes:
        graded: The greedy rollouts, one a prompt, then what each trial so far came to.
        captured: States of the greedy rollouts, and of trials after their last impulse.
        owner: For each state, its trajectory.
        improvable: For each trajectory, whether it is wrong, or right but long.
        trials: What has been tried; ``state`` is a row of ``captured``.
    """

    graded: list[GradedRollout]
    captured: CapturedStates
    owner: list[int]
    improvable: list[bool]
    trials: list[Intervention]

    @property
    def steered(self) -> list[int]:
        """For each state, the block that was steered on the way there, or ``UNSTEERED``."""
        impulses = [self.graded[owner].rollout.impulses for owner in self.owner]
        return [made[-1].block if made else UNSTEERED for made in impulses]

    def pool(self) -> StatePool:
        """The states as starting points: greedy ones and steered ones come up equally often.

        States with nothing to gain come up like others: where an impulse does harm is half of what
        the value head must know.
        """
        steered = torch.tensor(self.steered)
        weights = torch.ones(len(self.owner))
        for group in (steered == UNSTEERED, steered != UNSTEERED):
            weights[group] /= weights[group].sum().clamp_min(1e-12)
        return StatePool(
            states=self.captured.states,
            points=torch.tensor([label.point for label in self.captured.labels]),
            weights=weights,
            blocks=self.captured.blocks,
            steered=steered,
        )


def greedy_job(context: RunContext) -> GenerationJob:
    """The greedy rollouts of the harvest split, with their states."""
    return GenerationJob(
        prompts=context.splits["harvest"],
        num_samples=1,
        sampling=sampling_params(context, greedy=True),
        capture_blocks=context.resources.captured_blocks,
        prefix=NULL,
    )


def round_prefix(number: int) -> str:
    """Where a round of trials lies in its stage."""
    return f"round-{number:02d}/"


def trials_file(number: int, chunk: int) -> str:
    """Name of a chunk of trials."""
    return f"{round_prefix(number)}trials-{chunk:05d}.parquet"


def plan_file(number: int) -> str:
    """Name of a round's plan."""
    return f"{round_prefix(number)}plan.parquet"


def load_plan(stage: StageDir, number: int) -> list[PlannedTrial]:
    """What a round tries."""
    return load_table(stage.path / plan_file(number), PlannedTrial)


def load_intervention_data(
    context: RunContext, stage: StageDir, num_rounds: int
) -> InterventionData:
    """Read the greedy rollouts and the first rounds of trials.

    Raises:
        StageError: If no greedy rollout reaches a control point.
    """
    job = greedy_job(context)
    graded: list[GradedRollout] = []
    parts: list[CapturedStates] = []
    for chunk in range(num_chunks(context, job)):
        graded += load_rollouts(stage, NULL, chunk)
        parts.append(load_states(stage, NULL, chunk))
    trials: list[Intervention] = []
    size = context.config.generation.chunk_completions
    for number in range(num_rounds):
        num_trials = len(load_plan(stage, number))
        for chunk in range(-(-num_trials // size)):
            trials += load_table(stage.path / trials_file(number, chunk), Intervention)
            made = load_rollouts(stage, round_prefix(number), chunk)
            graded += made
            parts.append(_after_last_impulse(load_states(stage, round_prefix(number), chunk), made))
    captured = CapturedStates.concatenate(parts)
    if not captured.labels:
        raise StageError("greedy rollouts reach no control point; there is nowhere to steer")
    index = {(g.rollout.prompt_id, g.rollout.sample): i for i, g in enumerate(graded)}
    shortest = _shortest_right_samples(context)

    def is_improvable(item: GradedRollout) -> bool:
        length = len(item.rollout.token_ids)
        return not item.grade.correct or length > LONG * shortest.get(
            item.rollout.prompt_id, length
        )

    return InterventionData(
        graded,
        captured,
        [index[label.prompt_id, label.sample] for label in captured.labels],
        [is_improvable(item) for item in graded],
        trials,
    )


def make_trials(
    context: RunContext,
    stage: StageDir,
    source: tuple[InterventionData, ControlBasis],
    plans: Sequence[PlannedTrial],
    place: tuple[int, int],
) -> list[Intervention]:
    """Replay, judge and save a chunk of trials; nothing on a rank that only decodes along.

    Args:
        context: The run.
        stage: Takes the files.
        source: What trials start from, and what they inject.
        plans: The chunk's.
        place: The round and the chunk.
    """
    replays, basis = source
    number, chunk = place
    prompts = {prompt.prompt_id: prompt for prompt in context.splits["harvest"]}
    # Trials of one problem differ by their sample, which greedy decoding does not read.
    first = 1 + len(replays.trials) + chunk * context.config.generation.chunk_completions
    requests, impulses = [], []
    for i, plan in enumerate(plans):
        label = replays.captured.labels[plan.state]
        before = replays.graded[replays.owner[plan.state]].rollout
        made = (*before.impulses, _impulse(label.token_index, plan))
        impulses.append(made)
        requests.append(
            GenerationRequest(
                prompts[label.prompt_id],
                first + i,
                prefix_token_ids=before.token_ids[: label.token_index + 1],
                planned=tuple(
                    PlannedImpulse(m.token_index, m.block, m.strength * basis.directions[m.entry])
                    for m in made
                ),
            )
        )
    control = ControlSpec(
        context.resources.automaton,
        context.config.control_points.max_points,
        context.resources.captured_blocks,
    )
    result = context.resources.engine.generate(
        requests, sampling_params(context, greedy=True), seed=context.config.seed, control=control
    )
    name = trials_file(number, chunk)
    if not context.is_mine_to_write(f"{'validate'}/{name}", [r.token_ids for r in result.rollouts]):
        return []
    rollouts = [
        dataclasses.replace(rollout, impulses=made)
        for rollout, made in zip(result.rollouts, impulses, strict=True)
    ]
    graded = grade_rollouts(context, rollouts, [r.prompt for r in requests])
    assert result.states is not None, "blocks were named to be captured"
    prefix = round_prefix(number)
    save_states(context, stage, states_file(prefix, chunk), rollouts, result.states)
    save_table(stage, rollouts_file(prefix, chunk), GradedRollout, graded)
    trials = [_outcome(replays, plan, outcome) for plan, outcome in zip(plans, graded, strict=True)]
    # The trials come last: a chunk counts as made when they are there.
    save_table(stage, name, Intervention, trials)
    return trials


def value_examples(
    context: RunContext, replays: InterventionData | None, block: int
) -> tuple[ValueExamples, ValueExamples | None]:
    """What a block's head learns from: states of sampled rollouts, and those of replays.

    It reads the blocks of `read_blocks`.

    A state that was reached by impulses counts for the block that they were made in.
    """
    chunks = rollout_chunks(context)
    graded = [item for part, _ in chunks for item in part]
    captured = CapturedStates.concatenate([states for _, states in chunks])
    prompts = {prompt.prompt_id: i for i, prompt in enumerate(context.splits["harvest"])}
    reads = read_blocks(context, block)
    observed = build_examples(graded, captured, reads, prompts)
    if replays is None:
        return observed, None
    mine = torch.tensor([by in (UNSTEERED, block) for by in replays.steered])
    reached = build_examples(replays.graded, replays.captured, reads, prompts).select(mine)
    caused = build_intervened(replays.trials, replays.captured, load_basis(context), reads, prompts)
    return observed, ValueExamples.concatenate([reached, caused])


def read_blocks(context: RunContext, block: int) -> tuple[int, ...]:
    """The blocks that a block's head reads: itself, and the captured ones below, which ran before it."""
    if not context.config.value.reads_below:
        return (block,)
    return tuple(
        captured for captured in sorted(context.resources.captured_blocks) if captured <= block
    )


def _impulse(token_index: int, plan: PlannedTrial) -> Impulse:
    return Impulse(token_index, plan.block, plan.entry, plan.strength)


def _outcome(replays: InterventionData, plan: PlannedTrial, outcome: GradedRollout) -> Intervention:
    label, owner = replays.captured.labels[plan.state], replays.owner[plan.state]
    without = replays.graded[owner]
    return Intervention(
        prompt_id=label.prompt_id,
        state=plan.state,
        point=label.point,
        token_index=label.token_index,
        block=plan.block,
        entry=plan.entry,
        strength=plan.strength,
        propensity=plan.propensity,
        improvable=replays.improvable[owner],
        correct=outcome.grade.correct,
        tokens=len(outcome.rollout.token_ids),
        null_correct=without.grade.correct,
        null_tokens=len(without.rollout.token_ids),
    )


def _after_last_impulse(
    captured: CapturedStates, trials: Sequence[GradedRollout]
) -> CapturedStates:
    last = {
        (t.rollout.prompt_id, t.rollout.sample): t.rollout.impulses[-1].token_index for t in trials
    }
    return captured.select(
        [label.token_index > last[label.prompt_id, label.sample] for label in captured.labels]
    )


def _shortest_right_samples(context: RunContext) -> dict[str, int]:
    shortest: dict[str, int] = {}
    context.stage("rollout").require_complete()
    for sampled, _ in rollout_chunks(context):
        for item in sampled:
            if item.grade.correct:
                length, name = len(item.rollout.token_ids), item.rollout.prompt_id
                shortest[name] = min(length, shortest.get(name, length))
    return shortest
