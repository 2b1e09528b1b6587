"""A student of a policy gradient: what it learns from, its loss, and its gradient."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from pydantic import ValidationError

from stir_train.config.learning import ObjectiveConfig
from stir_train.directions.advantages import leave_one_out
from stir_train.distill.interface import ComparedTokens, TermInputs
from stir_train.distill.objective import DistillLoss
from stir_train.distill.samples import (
    IGNORED,
    BatchConfig,
    SequenceBatch,
    compared_samples,
    sequence_batches,
)
from stir_train.distill.terms import PolicyGradientTerm
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Grade, GradedRollout, Prompt, Rollout
from tests.support.distilling import fresh_student, plain_engine

POLICY = ObjectiveConfig(samples="compared", sequence=0.0, policy_gradient=1.0)


@pytest.fixture(scope="module")
def graded(loaded: LoadedModel, prompts: list[Prompt]) -> list[GradedRollout]:
    """Four samples each of six problems; right is an even number of tokens, so that none of it is luck."""
    made = DecodeEngine(loaded, max_rows=12).generate(
        [GenerationRequest(prompt, k) for prompt in prompts[:6] for k in range(4)],
        SamplingParams(60, loaded.stop_token_ids, temperature=1.0),
        seed=0,
    )
    return [
        GradedRollout(r, "", Grade(len(r.token_ids) % 2 == 0, "", ""), 0.0) for r in made.rollouts
    ]


def _batch(graded: list[GradedRollout]) -> tuple[list[Rollout], SequenceBatch]:
    worth = leave_one_out(graded).by_rollout
    samples = compared_samples(graded, worth)
    config = BatchConfig(len(samples), 0, seed=0, advantages=worth)
    [part] = next(sequence_batches(samples, plain_engine(), 0, config))
    return samples, part


def _loss(logits_at_once: int | None = None) -> DistillLoss:
    loss = DistillLoss(fresh_student().model, fresh_student(), POLICY)
    return (
        loss if logits_at_once is None else dataclasses.replace(loss, logits_at_once=logits_at_once)
    )


def _gradients(value: torch.Tensor) -> list[torch.Tensor]:
    learned = [p for p in fresh_student().model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(value, learned))


def test_all_completions_of_problems_with_unequal_rewards_are_compared(
    graded: list[GradedRollout],
) -> None:
    right = {item.rollout.prompt_id: set[bool]() for item in graded}
    for item in graded:
        right[item.rollout.prompt_id].add(item.grade.correct)
    mixed = {prompt_id for prompt_id, found in right.items() if len(found) == 2}
    assert len(mixed) > 0
    samples = compared_samples(graded, leave_one_out(graded).by_rollout)
    assert samples == [item.rollout for item in graded if item.rollout.prompt_id in mixed]


def test_at_the_sampler_its_gradient_is_that_of_the_log_likelihood_times_the_advantage(
    graded: list[GradedRollout],
) -> None:
    samples, batch = _batch(graded)
    made = _gradients(_loss()(batch)["policy_gradient"])
    worth = leave_one_out(graded).by_rollout
    model, total = fresh_student().model, torch.zeros(())
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_token_ids, *sample.token_ids]])
        logits = model(input_ids=ids).logits[0, len(sample.prompt_token_ids) - 1 : -1].float()
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(sample.token_ids)[:, None])
        total = total - worth[sample.prompt_id, sample.sample] * chosen.sum()
    expected = _gradients(total / sum(len(sample.token_ids) for sample in samples))
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_chunks_of_logits_add_up(graded: list[GradedRollout]) -> None:
    _, batch = _batch(graded)
    whole, cut = _loss()(batch), _loss(65 * 40)(batch)
    torch.testing.assert_close(whole["policy_gradient"], cut["policy_gradient"])
    gradients = (_gradients(loss["policy_gradient"]) for loss in (whole, cut))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_token_that_has_moved_far_enough_counts_no_more() -> None:
    """Up with a right answer, down with a wrong one; what moved the other way still counts."""
    logits = torch.zeros(4, 2, requires_grad=True)  # every token has a probability of 1/2
    before = torch.log(torch.tensor([0.3, 0.7, 0.7, 0.3]))
    inputs = TermInputs(
        logits=logits,
        labels=torch.zeros(4, dtype=torch.long),
        teacher_logits=None,
        states=None,
        teacher_states=None,
        num_targets=4,
        num_points=1,
        by_student=False,
        objective=POLICY,
        compared=ComparedTokens(torch.tensor([1.0, -1.0, 1.0, -1.0]), before),
    )
    value = PolicyGradientTerm()(inputs)
    assert value is not None
    expected = -(1.2 - 0.8 + 0.5 / 0.7 - 0.5 / 0.3) / 4
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    [gradient] = torch.autograd.grad(value, [logits])
    assert gradient.abs().sum(-1).gt(0).tolist() == [False, False, True, True]
    none = dataclasses.replace(inputs, compared=None)
    assert PolicyGradientTerm()(none) is None


def test_a_part_without_samples_says_nothing(graded: list[GradedRollout]) -> None:
    worth = leave_one_out(graded).by_rollout
    samples = compared_samples(graded, worth)[:1]
    config = BatchConfig(1, 0, seed=0, advantages=worth)
    full, empty = next(sequence_batches(samples, plain_engine(2), 0, config))
    assert (empty.labels == IGNORED).all()
    assert float(_loss()(empty)["policy_gradient"].detach()) == 0.0
    assert math.isfinite(float(_loss()(full)["policy_gradient"].detach()))


@pytest.mark.parametrize(
    "settings",
    [
        {"samples": "compared"},
        {"policy_gradient": 1.0},
        {"samples": "compared", "policy_gradient": 1.0},  # with a weight for sequence, by default
        {"samples": "compared", "policy_gradient": 1.0, "sequence": 0.0, "on_policy": 0.5},
    ],
)
def test_compared_samples_are_for_a_policy_gradient_alone(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="compared samples"):
        ObjectiveConfig.model_validate(settings)
