"""Answerers: a model plain and steered, and a baseline, behind one protocol."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stir_train.answering.baseline import BaselineAnswerer
from stir_train.answering.interface import BASE, Answerer
from stir_train.answering.model import ModelAnswerer
from stir_train.baselines.interface import AnsweringContext
from stir_train.baselines.self_consistency import SELF_CONSISTENCY
from stir_train.generation.controller import Controller
from stir_train.generation.fixed import FixedVector
from stir_train.types.rollout import Prompt, Rollout
from tests.support import bases


def _plain(answering: AnsweringContext) -> ModelAnswerer:
    return ModelAnswerer(BASE, lambda: answering.engine, answering.control, answering.seed)


def test_a_model_answers_every_prompt_in_order_with_its_samples_side_by_side(
    answering: AnsweringContext, prompts: list[Prompt], plain: list[Rollout]
) -> None:
    answerer: Answerer = _plain(answering)
    once = answerer.answer(prompts, num_samples=1, sampling=answering.greedy)
    assert [r.token_ids for r in once.rollouts] == [r.token_ids for r in plain]
    assert once.decisions is None, "nobody decided"
    assert once.states is None
    twice = answerer.answer(prompts[:3], num_samples=2, sampling=answering.sampled)
    asked = [(prompt.prompt_id, sample) for prompt in prompts[:3] for sample in range(2)]
    assert [(r.prompt_id, r.sample) for r in twice.rollouts] == asked


def test_a_controller_is_made_once_and_its_decisions_come_with_the_answers(
    answering: AnsweringContext, prompts: list[Prompt], plain: list[Rollout]
) -> None:
    made: list[Controller] = []

    def make() -> Controller:
        made.append(FixedVector("control_point", bases.BLOCK, torch.zeros(64)))
        return made[-1]

    steered = dataclasses.replace(_plain(answering), make_controller=make)
    assert not made, "nothing is made before it is needed"
    for _ in range(2):
        answers = steered.answer(prompts[:4], num_samples=1, sampling=answering.greedy)
        assert answers.decisions is not None
        assert [r.token_ids for r in answers.rollouts] == [r.token_ids for r in plain[:4]]
    assert len(made) == 1


def test_a_baseline_answers_once_within_the_runs_budget(
    answering: AnsweringContext, prompts: list[Prompt]
) -> None:
    method, setting = SELF_CONSISTENCY, {"samples": 3, "window": 3}
    answerer: Answerer = BaselineAnswerer(method, setting, dict, lambda: answering)
    assert answerer.model == BASE
    assert answerer.needs == method.needs
    answers = answerer.answer(prompts[:3], num_samples=1, sampling=answering.greedy)
    assert list(answers.rollouts) == method.answer(answering, {}, setting, prompts[:3])
    assert answers.forward_passes == sum(r.forward_passes for r in answers.rollouts)
    with pytest.raises(ValueError, match="once, not 2 times"):
        answerer.answer(prompts[:3], num_samples=2, sampling=answering.greedy)
    longer = dataclasses.replace(answering.greedy, max_new_tokens=7)
    with pytest.raises(ValueError, match="own token budget"):
        answerer.answer(prompts[:3], num_samples=1, sampling=longer)
