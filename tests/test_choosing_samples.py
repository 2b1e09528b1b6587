"""Methods that choose among samples: whose vote counts how much, and how many votes there are."""

from __future__ import annotations

import math

import pytest
import torch

from stir_train.baselines.dsc import Dsc, is_decided, probability_of_lead
from stir_train.baselines.interface import AnsweringContext, HarvestData
from stir_train.baselines.rpc import RPC, mean_probability, path_weights
from stir_train.baselines.self_certainty import SELF_CERTAINTY, borda, self_certainties
from stir_train.baselines.self_consistency import SELF_CONSISTENCY, Vote, elect
from stir_train.types.rollout import Prompt, Rollout


def _vote(sample: int, answer: str, logprob: float, *, path: int = 0) -> Vote:
    ids = (path or sample + 1, 7, 8)
    rollout = Rollout("p", sample, (1,), ids, (logprob,) * 3, (), "stop", forward_passes=3)
    return Vote(rollout, answer)


def test_power_zero_is_a_majority_and_a_large_power_takes_the_surest() -> None:
    votes = [_vote(i, answer, -1.0) for i, answer in enumerate(("a", "a", "b", "", "a"))]
    scores = [0.1, 0.2, 0.9, 2.0, 0.3]
    assert borda(votes, scores, 0.0).sample == 4, "the surest of the majority's"
    assert borda(votes, scores, 10.0).sample == 2
    # Ranks 1 to 4 count 4, 3, 2, 1: b has 4, a has 6.
    assert borda(votes, scores, 1.0).sample == 4
    assert borda(votes, scores, 1.0).total_tokens == 5 * 3
    assert borda([votes[3]], [2.0], 1.0).sample == 3, "nobody votes"


def test_self_certainty_is_the_divergence_from_uniform(
    answering: AnsweringContext, plain: list[Rollout], prompts: list[Prompt]
) -> None:
    one = plain[0]
    ids = torch.tensor([[*one.prompt_token_ids, *one.token_ids]])
    with torch.no_grad():
        logits = answering.loaded.model(input_ids=ids).logits[0]
    start = len(one.prompt_token_ids) - 1
    log_p = logits[start:-1].log_softmax(-1).double()
    uniform = torch.full_like(log_p, 1 / log_p.shape[-1])
    by_hand = (uniform * (uniform.log() - log_p)).sum(-1).mean()
    assert self_certainties(answering.loaded, plain[:3])[0] == pytest.approx(
        float(by_hand), rel=1e-4
    )
    method = SELF_CERTAINTY
    voted = method.answer(answering, {}, {"samples": 4, "power": 1.0}, prompts[:4])
    others = SELF_CONSISTENCY.answer(answering, {}, {"samples": 4, "window": 4}, prompts[:4])
    for rollout, other in zip(voted, others, strict=True):
        assert rollout.total_tokens == other.total_tokens
        assert rollout.forward_passes == other.forward_passes + 4, "a reading pass a sample"


def test_path_probabilities_count_once_and_improbable_paths_not_at_all() -> None:
    votes = [
        _vote(0, "a", math.log(0.4), path=3),
        _vote(1, "a", math.log(0.4), path=3),
        _vote(2, "b", math.log(0.7), path=9),
        _vote(3, "c", math.log(0.1), path=10),
    ]
    assert path_weights(votes, prune=False) == pytest.approx([0.4, 0.0, 0.7, 0.1])
    assert path_weights(votes, prune=True) == pytest.approx([0.4, 0.0, 0.7, 0.0])
    assert elect(votes).sample == 0
    assert elect(votes, path_weights(votes, prune=True)).sample == 2
    alike = [_vote(i, "a", math.log(0.3)) for i in range(3)]
    assert path_weights(alike, prune=True) == pytest.approx([0.3] * 3)


def test_rpc_adds_no_pass(answering: AnsweringContext, prompts: list[Prompt]) -> None:
    voted = RPC.answer(answering, {}, {"samples": 4, "prune": "yes"}, prompts[:4])
    for rollout in voted:
        assert rollout.forward_passes == rollout.total_tokens


def test_votes_are_decided_when_the_lead_is_safe() -> None:
    assert probability_of_lead(0, 0) == 0.5
    assert probability_of_lead(3, 0) == pytest.approx(1 - 0.5**4)
    assert probability_of_lead(2, 2) == 0.5
    assert not is_decided([_vote(0, "a", 0.0)] * 3)
    assert is_decided([_vote(0, "a", 0.0)] * 4)
    assert not is_decided([_vote(0, "", 0.0)] * 9)


def test_only_hard_problems_are_sampled(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData, plain: list[Rollout]
) -> None:
    method = Dsc()
    parameters = method.prepare(harvest)
    found = [float(parameters[f"quantile {q:g}"]) for q in (0.1, 0.25, 0.5)]
    assert found == sorted(found)
    middle = sorted(mean_probability(r) for r in plain)[len(plain) // 2]
    split = {"quantile 0.5": torch.tensor(middle, dtype=torch.float64)}
    setting = {"quantile": 0.5, "samples": 4}
    answered = method.answer(answering, split, setting, prompts)
    for rollout, greedy in zip(answered, plain, strict=True):
        if mean_probability(greedy) < middle:
            assert rollout.total_tokens > len(greedy.token_ids)
        else:
            assert rollout.token_ids == greedy.token_ids
            assert rollout.preview_tokens == 0
    (alone,) = method.answer(answering, split, setting, prompts[:1])
    assert (alone.token_ids, alone.total_tokens) == (
        answered[0].token_ids,
        answered[0].total_tokens,
    ), "whoever is asked beside it"
