"""Read a model on one problem: which step mattered, where the answer forms, what states say of the end.

Three readings of one completion of the base model. Each step is cut out and resampled (`evals.step_importance`); every
block's states go through the output layer (internal consistency, arXiv 2405.18711: the share of blocks below the
last that say what it says); and states at control points are compared with how completions end (`evals.dependence`).
They are for understanding, and no method uses them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from stir_train.evals.dependence import Dependence, outcome_dependence
from stir_train.evals.step_importance import Resampled
from stir_train.generation.backend import Ability, GenerationRequest, require_abilities
from stir_train.generation.open import abilities_of
from stir_train.models.lens import LensReading, read_blocks
from stir_train.runtime.answerers import control_spec
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import grade_rollouts, sampling_params
from stir_train.stores.rollouts import RolloutStore
from stir_train.stores.states import StateStore
from stir_train.tools.trace import tune_problem
from stir_train.types.rollout import GradedRollout, Prompt, Rollout
from stir_train.types.trajectory import CapturedStates

MAX_STATES = 2000
"""Of the harvest's at one control point, the first so many are compared, pair by pair."""


@dataclass(frozen=True)
class ReadingCost:
    """Tokens sampled for continuations and the completion itself, model calls, and continuations."""

    tokens: int
    forward_passes: int
    continuations: int


@dataclass(frozen=True)
class Diagnosis:
    """What was read of one completion.

    Attributes:
        prompt: The problem.
        completion: What was read.
        steps: Texts of the steps that control points end, the first ones of the completion.
        cuts: How continuations ended: from the prompt, and from behind each step.
        lens: Every block, first at the ends of the steps, then where the answer's tokens are said.
        of_problem: Dependence of states and outcomes by control point and block, over continuations from the prompt.
        of_harvest: The same over the run's harvest.
        cost: Of the readings.
    """

    prompt: Prompt
    completion: GradedRollout
    steps: tuple[str, ...]
    cuts: tuple[Resampled, ...]
    lens: LensReading | None
    of_problem: Mapping[tuple[int, int], Dependence | None]
    of_harvest: Mapping[tuple[int, int], Dependence | None]
    cost: ReadingCost


def diagnose(
    context: RunContext, index: int, *, sample: int | None, num_continuations: int
) -> Diagnosis:
    """Complete a tune problem and read the completion.

    Args:
        context: The run, whose harvest must have been sampled.
        index: Which problem of the tune split.
        sample: Which of its samples; None is greedy decoding.
        num_continuations: From every cut.

    Raises:
        StageError: If there is no such problem, or the backend's model is not in this process.
        ArtifactError: If the run has no rollouts, or they had other settings.
        ModelError: If the model's blocks cannot be read through its output layer.
    """
    backend = context.config.generation.backend
    needs = frozenset({Ability.EDIT_WEIGHTS, Ability.CAPTURE_STATES})
    require_abilities(backend, abilities_of(backend), needs, "diagnose")
    context.require_settings_of_rollouts()
    RolloutStore(context.stage("rollout")).require_complete()
    prompt = tune_problem(context, index)
    result = context.resources.engine.generate(
        [GenerationRequest(prompt, sample or 0)],
        sampling_params(context, greedy=sample is None),
        seed=context.config.seed,
        control=control_spec(context),
    )
    (rollout,) = result.rollouts
    (completion,) = grade_rollouts(context, [rollout], [prompt])
    ends = _step_ends(context, rollout)
    context.console.print(
        f"sampling {num_continuations} continuations from each of {1 + len(ends)} cuts"
    )
    first = 0 if sample is None else sample + 1  # its own noise would give the completion again
    numbers = range(first, first + num_continuations)
    cuts, captured, cost = resample(context, prompt, rollout, ends, numbers)
    blocks, points = context.resources.captured_blocks, range(1, 1 + len(ends))
    right = dict(zip(numbers, cuts[0].correct, strict=True))
    return Diagnosis(
        prompt,
        completion,
        _step_texts(context, rollout, ends),
        tuple(cuts),
        _through_lens(context, completion, ends),
        _of_captured(captured, right, points, blocks),
        _of_harvest(context, points, blocks),
        ReadingCost(
            cost.tokens + len(rollout.token_ids),
            cost.forward_passes + result.cost.forward_passes,
            cost.continuations,
        ),
    )


def answer_tokens(decode: Callable[[Sequence[int]], str], completion: GradedRollout) -> range:
    """Indices of the tokens in which a completion last says the answer that was read from it; maybe none."""
    token_ids = completion.rollout.token_ids
    answer = completion.grade.extracted
    start = completion.text.rfind(answer) if answer else -1
    if start < 0:
        return range(0)
    through = range(1, 1 + len(token_ids))

    def length(count: int) -> int:
        return len(decode(token_ids[:count]))

    first = bisect_right(through, start, key=length)
    last = bisect_right(through, start + len(answer) - 1, key=length)
    return range(first, min(last + 1, len(token_ids)))


def _step_ends(context: RunContext, rollout: Rollout) -> list[int]:
    """Control points that something follows, as many as the run looks at."""
    points = rollout.control_points[: context.config.control_points.max_points]
    return [point for point in points if point + 1 < len(rollout.token_ids)]


def _step_texts(context: RunContext, rollout: Rollout, ends: Sequence[int]) -> tuple[str, ...]:
    starts = [0, *(end + 1 for end in ends)]
    decode = context.resources.described.decode
    return tuple(
        decode(rollout.token_ids[start : end + 1]) for start, end in zip(starts, ends, strict=False)
    )


def resample(
    context: RunContext, prompt: Prompt, rollout: Rollout, ends: Sequence[int], numbers: range
) -> tuple[list[Resampled], CapturedStates, ReadingCost]:
    """Continue from the prompt and from behind each step.

    The noise of a sample is that of its number and the position, the same from every cut.

    Args:
        context: The run.
        prompt: The problem.
        rollout: What is cut.
        ends: Indices of the last token of each step.
        numbers: Samples' numbers.

    Returns:
        How they ended, cut by cut; the states of those from the prompt at their control points; the cost.
    """
    blocks = context.resources.captured_blocks
    prefixes = [(), *(rollout.token_ids[: end + 1] for end in ends)]
    requests = [
        GenerationRequest(prompt, number, prefix_token_ids=prefix)
        for prefix in prefixes
        for number in numbers
    ]
    sampling = sampling_params(context, greedy=False)
    made: list[Rollout] = []
    passes, captured = 0, None
    # Only continuations from the prompt are all of the problem, and not of this completion.
    for some, capture in ((requests[: len(numbers)], blocks), (requests[len(numbers) :], ())):
        result = context.resources.engine.generate(
            some, sampling, seed=context.config.seed, control=control_spec(context, capture)
        )
        made += result.rollouts
        passes += result.cost.forward_passes
        captured = captured or result.states
    assert captured is not None, "blocks were named to be captured"
    graded = grade_rollouts(context, made, [prompt] * len(made))
    cuts = []
    for start in range(0, len(graded), len(numbers)):
        grades = [item.grade for item in graded[start : start + len(numbers)]]
        cuts.append(Resampled(tuple(g.correct for g in grades), tuple(g.extracted for g in grades)))
    sampled = sum(
        len(one.token_ids) - len(asked.prefix_token_ids)
        for one, asked in zip(made, requests, strict=True)
    )
    return cuts, captured, ReadingCost(sampled, passes, len(made))


def _through_lens(
    context: RunContext, completion: GradedRollout, ends: Sequence[int]
) -> LensReading | None:
    """Every block at the ends of steps, and before each token of the answer."""
    rollout = completion.rollout
    before = len(rollout.prompt_token_ids)
    said = [token - 1 for token in answer_tokens(context.resources.described.decode, completion)]
    positions = [before + token for token in (*ends, *said)]
    if not positions:
        return None
    sequence = (*rollout.prompt_token_ids, *rollout.token_ids)
    return read_blocks(context.resources.loaded, sequence, positions)


def _of_captured(
    captured: CapturedStates,
    right: Mapping[int, bool],
    points: Sequence[int],
    blocks: Sequence[int],
) -> dict[tuple[int, int], Dependence | None]:
    found = {}
    for point in points:
        rows = [i for i, label in enumerate(captured.labels) if label.point == point]
        labels = [captured.labels[i] for i in rows]
        for block in blocks:
            found[point, block] = _dependence(
                captured.at_block(block)[rows],
                [right[label.sample] for label in labels],
                [label.prompt_id for label in labels],
            )
    return found


def _of_harvest(
    context: RunContext, points: Sequence[int], blocks: Sequence[int]
) -> dict[tuple[int, int], Dependence | None]:
    stage = context.stage("rollout")
    outcomes, states = RolloutStore(stage).outcomes(), StateStore(stage)
    labels, found = states.labels(), {}
    for point in points:
        rows = (labels.point == point).nonzero()[:MAX_STATES, 0]
        owners = [outcomes[owner] for owner in labels.rollout[rows].tolist()]
        for block in blocks:
            found[point, block] = _dependence(
                states.rows(blocks=[block], where=rows)[:, 0],
                [owner.correct for owner in owners],
                [owner.prompt_id for owner in owners],
            )
    return found


def _dependence(
    states: Tensor, right: Sequence[bool], problems: Sequence[str]
) -> Dependence | None:
    return outcome_dependence(states.float().numpy(), np.array(right, dtype=bool), problems)
