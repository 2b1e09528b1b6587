"""Selection by the trajectory of states, and a wave on words of reflection."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stir_train.baselines.cyclic_reflex import CYCLIC_REFLEX, wave
from stir_train.baselines.interface import AnsweringContext, HarvestData, NotApplicable
from stir_train.baselines.mur import MUR, take, uncertainty
from stir_train.baselines.probing import Progress
from stir_train.baselines.trajectory_selection import (
    TrajectorySelection,
    changes,
    pick,
    score,
    signals_of,
)
from stir_train.types.rollout import Prompt, Rollout
from tests.support import bases


def test_changes_of_a_straight_and_of_a_closed_path() -> None:
    straight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    torch.testing.assert_close(changes(straight), torch.tensor([1.5, 3.0, 1.0]))
    bent = torch.tensor([[0.0, 0.0], [0.0, 4.0], [3.0, 0.0]])
    net, cumulative, aligned = changes(bent).tolist()
    assert (net, cumulative) == (1.5, 9.0)
    assert aligned == pytest.approx(0.3)  # cosines 0 and 3/5


def test_what_is_picked_is_the_best_that_ended_and_all_tokens_count() -> None:
    def made(sample: int, length: int, *, ended: bool = True) -> Rollout:
        finish = "stop" if ended else "length"
        return Rollout("p", sample, (1,), (5,) * length, (0.0,) * length, (), finish)  # type: ignore[arg-type]

    samples = [made(0, 3), made(1, 4), made(2, 9, ended=False)]
    assert pick(samples, [0.1, 0.5, 0.9]).sample == 1
    assert pick(samples, [0.1, 0.5, 0.9]).total_tokens == 16
    assert pick(samples[2:], [0.9]).sample == 2
    # Where less of the signal is better, a sample without two control points has not least of it.
    unread = score(None, 0, -1.0)
    assert pick(samples, [unread, score(torch.tensor([2.0, 0.0, 0.0]), 0, -1.0), 0.0]).sample == 1
    assert pick(samples, [unread, unread, unread]).sample == 0


def test_the_sign_is_that_of_right_completions_and_states_cost_no_pass(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData
) -> None:
    method = TrajectorySelection()
    parameters = method.prepare(harvest)
    found = signals_of(harvest.captured, bases.BLOCK)
    right = {(g.rollout.prompt_id, g.rollout.sample): g.grade.correct for g in harvest.graded}
    for signal, sign in enumerate(parameters[f"signs {bases.BLOCK}"].tolist()):
        means = [
            torch.stack([v[signal] for key, v in found.items() if right[key] is correct]).mean()
            for correct in (True, False)
        ]
        assert sign * float(means[0] - means[1]) > 0
    setting = {"block": bases.BLOCK, "signal": "cumulative"}
    more = method.answer(answering, parameters, setting, prompts[:4])
    turned = {name: -signs for name, signs in parameters.items()}
    less = method.answer(answering, turned, setting, prompts[:4])
    assert [r.total_tokens for r in more] == [r.total_tokens for r in less]
    assert [r.sample for r in more] != [r.sample for r in less]
    assert all(r.forward_passes == r.total_tokens for r in more)
    all_right = [
        dataclasses.replace(g, grade=dataclasses.replace(g.grade, correct=True))
        for g in harvest.graded
    ]
    with pytest.raises(NotApplicable, match="both right and wrong"):
        method.prepare(dataclasses.replace(harvest, graded=all_right))


def test_the_wave_rises_first_and_is_nothing_on_average() -> None:
    assert [wave(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 1, 0, -1, 0]
    assert wave(0.125) == 0.5
    assert wave(3.125) == 0.5
    assert sum(wave(i / 64) for i in range(64)) == pytest.approx(0)


def test_words_of_reflection_come_and_go_with_the_wave(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData, plain: list[Rollout]
) -> None:
    method, few = CYCLIC_REFLEX, prompts[:3]
    parameters = method.prepare(harvest)
    words = set(parameters["token_ids"].tolist())
    flat = method.answer(answering, parameters, {"amplitude": 0.0, "period": 0.5}, few)
    assert [r.token_ids for r in flat] == [r.token_ids for r in plain[:3]]
    loud = method.answer(answering, parameters, {"amplitude": 1e4, "period": 0.5}, few)
    half = bases.BUDGET // 4  # half a period of half the budget
    for rollout in loud:
        assert set(rollout.token_ids[:half]) <= words
        assert not words & set(rollout.token_ids[half : 2 * half])


def test_uncertain_steps_are_sampled_again_and_the_surest_is_kept(
    answering: AnsweringContext, prompts: list[Prompt], plain: list[Rollout]
) -> None:
    few, whole = prompts[:3], plain[:3]
    never = MUR.answer(answering, {}, {"gamma": 1e-9, "samples": 2}, few)
    assert [r.token_ids for r in never] == [r.token_ids for r in whole]
    assert all(r.preview_tokens == 0 for r in never)
    always = MUR.answer(answering, {}, {"gamma": 1e9, "samples": 2}, few)
    for rollout, other in zip(always, whole, strict=True):
        first = other.control_points[0] + 1
        assert rollout.token_ids[:first] == other.token_ids[:first]
        assert rollout.preview_tokens > 0, "steps not taken are counted"


def test_the_surest_step_is_taken_and_the_others_are_counted(
    answering: AnsweringContext, prompts: list[Prompt]
) -> None:
    def step(length: int, logprob: float, last: int) -> Rollout:
        ids, nan = (5,) * (length - 1) + (last,), float("nan")
        logprobs = (nan, nan) + (logprob,) * (length - 2)
        return Rollout("p", 0, (1,), ids, logprobs, (), "stop", forward_passes=length)

    item = Progress(prompts[0], (5, 5))
    steps = [step(5, -1.0, 4), step(7, -0.5, answering.greedy.stop_token_ids[0])]
    assert [uncertainty(s, item) for s in steps] == [1.0, 0.5]
    take(answering, item, steps[1], steps)
    assert (len(item.token_ids), item.extra_tokens, item.forward_passes) == (7, 3, 12)
    assert item.finish == "stop"
