"""Greedy answers of a stage that its controllers' answers go on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from stir_train.answering.continued import ContinuedAnswerer, GreedyAnswers
from stir_train.answering.interface import Answerer
from stir_train.answering.model import ModelAnswerer
from stir_train.artifacts.run_dir import StageDir
from stir_train.generation.backend import Ability
from stir_train.generation.open import abilities_of
from stir_train.runtime.answerers import plain_answerer
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import GenerationJob, prompts_per_chunk
from stir_train.stores.rollouts import RolloutStore
from stir_train.stores.states import StateStore
from stir_train.types.rollout import Prompt, Rollout
from stir_train.types.trajectory import CapturedStates


def reuses_greedy(context: RunContext) -> bool:
    """Whether greedy answers are kept with their states, for controllers' answers to go on from."""
    abilities = abilities_of(context.config.generation.backend)
    return context.config.reuse_greedy and Ability.CAPTURE_STATES in abilities


def greedy_answerer(context: RunContext) -> ModelAnswerer:
    """The base model without a controller; its states are kept where they are of use."""
    blocks = context.resources.captured_blocks if reuses_greedy(context) else ()
    return plain_answerer(context, capture_blocks=blocks)


def continued(
    context: RunContext, stage: StageDir, answerer: Answerer, greedy: GenerationJob
) -> Answerer:
    """What answers as a controller does, from where it first acts on; itself where nothing can be reused.

    Args:
        context: The run.
        stage: Holds the greedy answers by the time that it is asked.
        answerer: Answers from the beginning; no controller's, it is left as it is.
        greedy: Made the greedy answers, to the same problems or more, by `greedy_answerer`.
    """
    if not isinstance(answerer, ModelAnswerer) or answerer.make_controller is None:
        return answerer
    if not reuses_greedy(context):
        return answerer
    return ContinuedAnswerer(
        answerer, lambda prompts: _greedy_answers(context, stage, greedy, prompts)
    )


def _greedy_answers(
    context: RunContext, stage: StageDir, job: GenerationJob, prompts: Sequence[Prompt]
) -> GreedyAnswers:
    """Read the chunks that hold the answers to some of a job's problems."""
    place = {prompt.prompt_id: number for number, prompt in enumerate(job.prompts)}
    size = prompts_per_chunk(context, job)
    rollouts, states = RolloutStore(stage), StateStore(stage)
    by_problem: dict[str, Rollout] = {}
    found: list[CapturedStates] = []
    for chunk in sorted({place[prompt.prompt_id] // size for prompt in prompts}):
        graded = rollouts.read_chunk(job.set_name, chunk)
        by_problem |= {item.rollout.prompt_id: item.rollout for item in graded}
        found.append(states.read_chunk(job.set_name, chunk, graded))
    captured = CapturedStates.concatenate(found)
    wanted = {prompt.prompt_id for prompt in prompts}
    rows = [row for row, label in enumerate(captured.labels) if label.prompt_id in wanted]
    kept = dataclasses.replace(
        captured,
        labels=tuple(captured.labels[row] for row in rows),
        states=captured.states[torch.tensor(rows, dtype=torch.long)].to(
            context.resources.loaded.device
        ),
    )
    return GreedyAnswers(tuple(by_problem[prompt.prompt_id] for prompt in prompts), kept)


def mean_reused(stage: StageDir, set_names: Sequence[str]) -> float:
    """Tokens of an answer of some sets that were taken over from a greedy one, on average."""
    store = RolloutStore(stage)
    numbers = [number for name in set_names for number in store.num_reused(name)]
    return sum(numbers) / len(numbers)


def describe_reuse(share: float) -> str:
    """The end of a stage's sentence: what it did not decode, if anything."""
    if not share:
        return ""
    return f"; {share:.0%} of the steered tokens were greedy decoding's, and not decoded again"
