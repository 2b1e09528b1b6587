"""One model under several sets of fixed vectors, decoded in one batch.

What tuning and evaluation try of such vectors are small sets of answers each, and a batch of few rows decodes
fewer tokens a second. Vectors that act from the prompt on whatever the state can be planned with each request, so
that rows under different ones share their passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from stir_train.answering.continued import ContinuedAnswerer
from stir_train.answering.interface import Answerer
from stir_train.answering.model import ModelAnswerer
from stir_train.generation.backend import (
    GenerationRequest,
    PlannedImpulse,
    SamplingParams,
    TokenListener,
)
from stir_train.generation.controller import controllers_of
from stir_train.generation.fixed import FixedVector
from stir_train.types.answers import Answers
from stir_train.types.places import PROMPT_END
from stir_train.types.rollout import Impulse, Prompt, Rollout
from stir_train.types.steering import SteeringDecision


def fixed_from_the_prompt_on(answerer: Answerer) -> ModelAnswerer | None:
    """The answerer, if all that it does to its model is to add fixed vectors from the prompt on; else None.

    One that would go on from greedy answers has nothing to go on from: it acts before their first token.
    """
    steered = answerer.steered if isinstance(answerer, ContinuedAnswerer) else answerer
    if isinstance(steered, ModelAnswerer) and steered.is_fixed_from_the_prompt_on:
        return steered
    return None


def answer_side_by_side(
    asked: Sequence[tuple[ModelAnswerer, Sequence[Prompt]]],
    sampling: SamplingParams,
    listener: TokenListener | None = None,
) -> list[Answers]:
    """Answer each one's prompts once, greedily, all in the same batches.

    Args:
        asked: Answerers over one model, each with its prompts (`fixed_from_the_prompt_on`).
        sampling: Greedy, with the token budget.
        listener: Called with every token that is decoded.

    Returns:
        Of each what it would answer by itself, but for rounding, which depends on the shape of a batch. Passes are
        those of all together.

    Raises:
        ValueError: If answers are to be sampled: noise is told apart by prompt and sample alone.
    """
    if sampling.temperature > 0:
        raise ValueError("only greedy answers are made side by side")
    first, _ = asked[0]
    vectors = [_vectors(answerer) for answerer, _ in asked]
    plans = [tuple(map(_planned, of_one)) for of_one in vectors]
    requests = [
        GenerationRequest(prompt, planned=plan)
        for (_, prompts), plan in zip(asked, plans, strict=True)
        for prompt in prompts
    ]
    made = first.open().generate(
        requests, sampling, seed=first.seed, control=first.control, listener=listener
    )
    answers, begun = [], 0
    for (_, prompts), of_one in zip(asked, vectors, strict=True):
        rollouts = made.rollouts[begun : begun + len(prompts)]
        begun += len(prompts)
        answers.append(
            Answers(
                tuple(_with_impulses(rollout, of_one) for rollout in rollouts),
                made.cost.forward_passes,
                # Where nothing acts, there is nothing to decide.
                decisions=tuple(
                    _decision(rollout, vector) for rollout in rollouts for vector in of_one
                )
                if of_one
                else None,
            )
        )
    return answers


def _vectors(answerer: ModelAnswerer) -> tuple[FixedVector, ...]:
    """In the order in which a pass comes to them: the lower blocks run first."""
    controllers = controllers_of(answerer.controller)
    found = [controller for controller in controllers if isinstance(controller, FixedVector)]
    assert len(found) == len(controllers), "fixed from the prompt on"
    return tuple(sorted(found, key=lambda vector: vector.block))


def _planned(vector: FixedVector) -> PlannedImpulse:
    return PlannedImpulse(
        PROMPT_END, vector.block, vector.strength * vector.vector.float(), vector.place
    )


def _with_impulses(rollout: Rollout, vectors: Sequence[FixedVector]) -> Rollout:
    impulses = tuple(
        Impulse(PROMPT_END, vector.block, -1, _strength(vector), vector.place)
        for vector in vectors
        if vector.strength != 0
    )
    return dataclasses.replace(rollout, impulses=impulses)


def _strength(vector: FixedVector) -> float:
    """As a controller's is recorded: in float32."""
    return float(torch.tensor(vector.strength, dtype=torch.float32))


def _decision(rollout: Rollout, vector: FixedVector) -> SteeringDecision:
    """The record of a vector that was compared with nothing, at the prompt's end."""
    return SteeringDecision(
        prompt_id=rollout.prompt_id,
        sample=rollout.sample,
        point=0,
        token_index=PROMPT_END,
        block=vector.block,
        candidates=(),
        scores=(),
        null_score=0.0,
        chosen=-1,
        strength=_strength(vector),
        place=vector.place,
    )
