"""Methods that stop early: never before they are told to, then with the answer tried there."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stir_train.baselines.convergence import ANSWER_CONVERGENCE, has_converged
from stir_train.baselines.interface import AnsweringContext, HarvestData, NotApplicable
from stir_train.baselines.probing import Progress, accept
from stir_train.baselines.value_exit import ValueExit, fit_probe, last_states
from stir_train.data.prompts import knows, spaced
from stir_train.types.rollout import Grade, Prompt, Rollout
from tests.support import bases


def test_answers_converge_when_the_last_ones_agree() -> None:
    assert has_converged(["1", "2", "2"], 2)
    assert not has_converged(["2"], 2)
    assert not has_converged(["2", "2", "3"], 2)
    assert not has_converged(["", ""], 2), "no answers are no agreement"


def test_an_answer_is_asked_for_with_tokens_that_the_vocabulary_has(
    answering: AnsweringContext,
) -> None:
    tokenizer = answering.loaded.tokenizer
    assert not knows(tokenizer, "Answer:"), (
        "this vocabulary of whole words has a space behind signs"
    )
    assert spaced("Answer:", tokenizer) == "Answer: "
    assert tokenizer.unk_token_id not in answering.answer_prompt
    assert spaced("Answer: ", tokenizer) == "Answer: "
    assert spaced("nonesuch", tokenizer) == "nonesuch", "nothing better is known"


def test_it_stops_where_trials_agree_and_counts_every_trial(
    answering: AnsweringContext, prompts: list[Prompt], plain: list[Rollout]
) -> None:
    method = ANSWER_CONVERGENCE
    few, whole = prompts[:4], plain[:4]
    never = method.answer(answering, {}, {"agreeing": 1000}, few)
    assert [r.token_ids for r in never] == [r.token_ids for r in whole]
    assert all(r.preview_tokens > 0 for r in never), "trials are counted"
    early = method.answer(answering, {}, {"agreeing": 1}, few)
    for rollout, other in zip(early, whole, strict=True):
        if rollout.token_ids == other.token_ids:
            continue
        stands = other.token_ids.index(answering.delimiter_ids[0]) + 1
        assert rollout.token_ids[:stands] == other.token_ids[:stands]
        asked = rollout.token_ids[stands : stands + len(answering.answer_prompt)]
        assert asked == answering.answer_prompt or rollout.preview_tokens > 0
    assert any(len(a.token_ids) < len(b.token_ids) for a, b in zip(early, whole, strict=True))


def test_no_trial_is_accepted_that_makes_an_answer_longer_than_the_budget(
    answering: AnsweringContext, prompts: list[Prompt], plain: list[Rollout]
) -> None:
    trial, prefix = plain[0], plain[0].token_ids[:3]
    length = len(prefix) + len(answering.answer_prompt) + len(trial.token_ids)
    for budget, finish in ((length, "stop"), (length - 1, None)):
        greedy = dataclasses.replace(answering.greedy, max_new_tokens=budget)
        item = Progress(prompts[0], prefix)
        accept(dataclasses.replace(answering, greedy=greedy), item, prefix, trial)
        assert item.finish == finish
        assert len(item.token_ids) == (length if finish else len(prefix))


def test_the_probe_tells_what_it_was_fitted_to_and_reads_what_was_captured(
    answering: AnsweringContext, harvest: HarvestData
) -> None:
    generator = torch.Generator().manual_seed(0)
    states = 3 + 5 * torch.randn(400, 8, generator=generator)
    labels = states[:, 2] > 4
    weight, bias = fit_probe(states, labels)
    predicted = states @ weight + bias > 0
    assert float((predicted == labels).float().mean()) > 0.95
    # The state that is read where a completion pauses is the one that the harvest captured there.
    label = harvest.captured.labels[0]
    rollout = next(
        g.rollout
        for g in harvest.graded
        if (g.rollout.prompt_id, g.rollout.sample) == (label.prompt_id, label.sample)
    )
    prompt = next(p for p in harvest.prompts if p.prompt_id == label.prompt_id)
    item = Progress(prompt, rollout.token_ids[: label.token_index + 1])
    torch.testing.assert_close(
        last_states(answering, [item], bases.BLOCK)[0],
        harvest.captured.at_block(bases.BLOCK)[0].float(),
        atol=1e-3,
        rtol=1e-3,
    )


def test_it_leaves_where_the_probe_is_sure_and_nowhere_else(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData, plain: list[Rollout]
) -> None:
    method = ValueExit()
    parameters = dict(method.prepare(harvest))
    few, whole = prompts[:4], plain[:4]
    setting = {"block": bases.BLOCK, "confidence": 0.9}
    weight, bias = f"weight {bases.BLOCK}", f"bias {bases.BLOCK}"
    parameters[weight] = torch.zeros_like(parameters[weight])
    unsure = method.answer(answering, {**parameters, bias: torch.tensor(-9.0)}, setting, few)
    assert [r.token_ids for r in unsure] == [r.token_ids for r in whole]
    for rollout, other in zip(unsure, whole, strict=True):
        num_read = sum(token in answering.delimiter_ids for token in other.token_ids)
        assert rollout.forward_passes >= other.forward_passes + num_read - 1
        assert rollout.preview_tokens == 0
    sure = method.answer(answering, {**parameters, bias: torch.tensor(9.0)}, setting, few)
    assert any(len(a.token_ids) < len(b.token_ids) for a, b in zip(sure, whole, strict=True))
    wrong = [dataclasses.replace(g, grade=Grade(False, "", "")) for g in harvest.graded]
    with pytest.raises(NotApplicable, match="both right and wrong"):
        method.prepare(dataclasses.replace(harvest, graded=wrong))
