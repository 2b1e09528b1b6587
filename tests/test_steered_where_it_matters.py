"""Methods that act by what the model is like at a step: how sure, how uncertain, of which category."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from stir_train.baselines.atlas import Atlas, VerifiedController
from stir_train.baselines.editing import adding
from stir_train.baselines.entropy_points import QUANTILES, EntropyPoints, lens
from stir_train.baselines.interface import AnsweringContext, HarvestData, NotApplicable
from stir_train.baselines.pairs import right_states
from stir_train.baselines.reading import block_outputs, read
from stir_train.baselines.rebalance import (
    AT_LOW,
    AT_ONE,
    OVERTHINKING,
    UNDERTHINKING,
    ReBalance,
    Thresholds,
    steps_of,
    strength,
)
from stir_train.baselines.rise import Rise, SparseCode, columns_of_right, fit_code
from stir_train.generation.controller import ControlBatch
from stir_train.generation.fixed import FixedVector
from stir_train.types.rollout import Prompt, Rollout
from tests.support import bases

AT = Thresholds(0.65, 0.90, 0.0005, 0.01)


def _tokens(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for rollout in rollouts]


def test_the_strength_is_the_curve_or_what_a_step_that_over_or_underthinks_gets() -> None:
    assert strength(0.65, 0.65, AT) == pytest.approx(AT_LOW)
    assert strength(1.0, None, AT) == pytest.approx(AT_ONE)
    curve = [strength(c / 100, None, AT) for c in range(101)]
    assert curve == sorted(curve)
    assert strength(0.5, 0.9, AT) == OVERTHINKING
    assert strength(0.5, 0.5, AT) == strength(0.5, None, AT), "unsure, but it does not waver"
    assert strength(0.95, 0.94, AT) == UNDERTHINKING
    assert strength(0.95, 0.6, AT) == strength(0.95, None, AT)
    assert Thresholds.of([1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 4.0]) == Thresholds(2.0, 4.0, 1.0, 3.0)


def test_the_vector_is_added_at_the_end_of_steps_alone(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData, plain: list[Rollout]
) -> None:
    method, few, whole = ReBalance(), prompts[:6], plain[:6]
    parameters = method.prepare(harvest)
    setting = {"block": bases.BLOCK, "scale": 1.0}
    still = {**parameters, f"block {bases.BLOCK}": torch.zeros(64)}
    none = method.answer(answering, still, setting, few)
    assert _tokens(none) == _tokens(whole)
    for rollout, other in zip(none, whole, strict=True):
        assert rollout.forward_passes == other.forward_passes, "a pause adds no pass"
    steered = method.answer(answering, parameters, {**setting, "scale": 8.0}, few)
    assert _tokens(steered) != _tokens(whole)
    for rollout, other in zip(steered, whole, strict=True):
        stands = other.control_points[0] + 1
        assert rollout.token_ids[:stands] == other.token_ids[:stands]
    # What decoding records is what the prototypes were made from: here the greedy token is the likeliest.
    one = whole[0]
    first = one.logprobs[: one.control_points[0] + 1]
    by_hand = sum(math.exp(logprob) for logprob in first) / len(first)
    found = steps_of(answering.loaded, whole)[one.prompt_id, one.sample]
    assert len(found) == len(one.control_points)
    assert found[0] == pytest.approx(by_hand, abs=1e-4)


def test_the_vector_lies_between_the_prototypes(harvest: HarvestData) -> None:
    parameters = ReBalance().prepare(harvest)
    at = Thresholds(*parameters["thresholds"].tolist())
    assert at.low_confidence < at.high_confidence
    assert at.low_variance < at.high_variance
    steps = steps_of(
        harvest.loaded, [g.rollout for g in harvest.graded if g.rollout.control_points]
    )
    sides: dict[float, list[torch.Tensor]] = {OVERTHINKING: [], UNDERTHINKING: []}
    for row, label in enumerate(harvest.captured.labels):
        found = steps[label.prompt_id, label.sample]
        before = None if label.point == 1 else found[label.point - 2]
        side = strength(found[label.point - 1], before, at)
        if side in sides:
            sides[side].append(harvest.captured.at_block(bases.BLOCK)[row].float())
    over, under = (torch.stack(rows).mean(0) for rows in sides.values())
    torch.testing.assert_close(parameters[f"block {bases.BLOCK}"], over - under)
    without = dataclasses.replace(
        harvest,
        graded=[
            dataclasses.replace(g, rollout=dataclasses.replace(g.rollout, control_points=()))
            for g in harvest.graded
        ],
    )
    with pytest.raises(NotApplicable, match="two steps"):
        ReBalance().prepare(without)


def test_the_code_is_sparse_reconstructs_and_is_the_same_again() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = torch.nn.functional.normalize(torch.randn(5, 24, generator=generator), dim=1)
    weights = torch.rand(1000, 5, generator=generator) * (torch.arange(5) < 2)
    states = 5 + 3 * weights @ parts + 0.02 * torch.randn(1000, 24, generator=generator)
    code = fit_code(states)
    activations = code.activations(states)
    assert int((activations > 0).sum(1).max()) <= 4
    assert float(activations.min()) >= 0
    torch.testing.assert_close(code.decoder.norm(dim=1), torch.ones(len(code.decoder)))
    error = (code.reconstruct(states) - states).square().sum()
    assert float(error) < 0.15 * float((states - states.mean(0)).square().sum())
    again = vars(fit_code(states)).values()
    assert all(torch.equal(a, b) for a, b in zip(vars(code).values(), again, strict=True))


def test_a_category_gets_the_column_that_tells_its_right_steps_with_the_sign_of_right() -> None:
    generator = torch.Generator().manual_seed(0)
    unit = torch.eye(8)
    code = SparseCode(torch.zeros(8), torch.ones(()), unit, torch.zeros(8), unit)
    category = torch.randint(3, (300,), generator=generator)
    has_fifth = torch.rand(300, generator=generator) < 0.5
    states = 3 * unit[category] + 2 * has_fifth[:, None] * unit[4]
    wanted = torch.zeros(8, 8)
    wanted[:3, 4] = 1.0
    assert torch.equal(columns_of_right(code, states, has_fifth), wanted)
    assert torch.equal(columns_of_right(code, states, ~has_fifth), -wanted)
    wanted[1] = 0.0
    elsewhere = has_fifth | (category == 1)
    assert torch.equal(columns_of_right(code, states, elsewhere), wanted), "one without wrong steps"


def test_the_category_of_a_step_picks_the_vector(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData, plain: list[Rollout]
) -> None:
    method, setting = Rise(), {"block": bases.BLOCK, "strength": 2.0}
    parameters = method.prepare(harvest)
    actions = f"actions {bases.BLOCK}"
    still = {**parameters, actions: torch.zeros_like(parameters[actions])}
    assert _tokens(method.answer(answering, still, setting, prompts[:6])) == _tokens(plain[:6])
    steered = method.answer(answering, parameters, setting, prompts)
    assert _tokens(steered) != _tokens(plain)
    for rollout, other in zip(steered, plain, strict=True):
        stands = other.control_points[0] + 1
        assert rollout.token_ids[:stands] == other.token_ids[:stands]
        assert {i.token_index for i in rollout.impulses} <= set(rollout.control_points)
    # A code whose only active latent is the third: the third's vector, everywhere.
    names = [field.name for field in dataclasses.fields(SparseCode)]
    code = SparseCode(*(parameters[f"{name} {bases.BLOCK}"] for name in names))
    bias = torch.full_like(code.bias, -1e9)
    bias[2] = 1e9
    third = {**parameters, f"bias {bases.BLOCK}": bias, actions: torch.zeros_like(code.decoder)}
    third[actions][2] = code.decoder[0]
    everywhere = method.answer(answering, third, setting, prompts[:3])
    for rollout in everywhere:
        acted = [impulse.token_index for impulse in rollout.impulses]
        assert acted == list(rollout.control_points[: bases.MAX_POINTS])


def test_the_entropy_is_the_models_own_in_the_last_block(
    harvest: HarvestData, plain: list[Rollout]
) -> None:
    last = len(harvest.loaded.blocks) - 1
    (reading,) = read(harvest.loaded, plain[:2], block_outputs(harvest.loaded, [last]))
    logprobs = reading.logits.log_softmax(-1)
    wanted = -(logprobs.exp() * logprobs).sum(-1)
    found = lens(harvest.loaded)(reading.found[f"block {last}"][0])
    torch.testing.assert_close(found, wanted[0], atol=1e-4, rtol=1e-4)


def test_a_vector_at_every_entropy_is_steering_at_every_token_and_at_none_is_none(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData, plain: list[Rollout]
) -> None:
    method, block, quantile = EntropyPoints(), bases.BLOCK, QUANTILES[0]
    parameters = method.prepare(harvest)
    setting = {"block": block, "quantile": quantile, "strength": 4.0}
    entropy, vector = f"entropy {block} {quantile:g}", f"vector {block} {quantile:g}"
    never = {**parameters, entropy: torch.tensor(1e9)}
    assert _tokens(method.answer(answering, never, setting, prompts[:6])) == _tokens(plain[:6])
    always = {**parameters, entropy: torch.tensor(-1.0)}
    edit = adding(answering.loaded, block, 4.0 * parameters[vector], to_prompt=False)
    assert _tokens(method.answer(answering, always, setting, prompts)) == _tokens(
        answering.answer(prompts, edit=edit)
    )
    some = method.answer(answering, parameters, setting, prompts)
    assert all(r.preview_tokens == 0 and r.forward_passes == len(r.token_ids) for r in some)
    levels = [float(parameters[f"entropy {block} {q:g}"]) for q in QUANTILES]
    assert levels == sorted(levels)


def test_a_verifier_picks_the_action_where_it_is_sure_enough() -> None:
    unit = torch.eye(4)
    controller = VerifiedController(
        block=3,
        weight=unit[0],
        bias=1.0,
        low=0.0,
        high=3.0,
        actions=torch.stack([2 * unit[1], 2 * unit[2]]),
        strength=2.0,
    )
    states = torch.tensor([-2.0, -1.0, 0.0, 1.9, 2.0, 5.0])[:, None] * unit[0]
    batch = ControlBatch(("a",) * 6, (0,) * 6, torch.ones(6, dtype=torch.long), (0,) * 6)
    decision = controller.decide(states, batch)
    assert decision.fires.tolist() == [True, True, False, False, True, True]
    assert torch.equal(decision.deltas[:2], (2 * unit[1]).expand(2, 4)), "a wrong end is expected"
    assert torch.equal(decision.deltas[4:], (2 * unit[2]).expand(2, 4)), "a right one"
    assert decision.strengths.tolist() == [2, 2, 0, 0, 2, 2]


def test_a_verifier_that_always_says_the_same_is_a_fixed_vector_and_one_in_doubt_nothing(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData, plain: list[Rollout]
) -> None:
    method, block, few = Atlas(), bases.BLOCK, prompts[:6]
    parameters = method.prepare(harvest)
    setting = {"block": block, "quantile": 0.25, "strength": 2.0}
    for name, bias in (("right", -1e6), ("short", 1e6)):
        always = {**parameters, f"bias {block}": torch.tensor(bias)}
        vector = 2.0 * parameters[f"scale {block}"] * parameters[f"{name} {block}"]
        fixed = answering.answer(few, controller=FixedVector("control_point", block, vector))
        assert _tokens(fixed) != _tokens(plain[:6])
        assert _tokens(method.answer(answering, always, setting, few)) == _tokens(fixed)
    never = {
        **parameters,
        f"low {block} 0.25": torch.tensor(-1e6),
        f"high {block} 0.25": torch.tensor(1e6),
    }
    idle = method.answer(answering, never, setting, few)
    assert _tokens(idle) == _tokens(plain[:6])
    assert [r.forward_passes for r in idle] == [r.forward_passes for r in plain[:6]]


def test_the_verifier_tells_right_from_wrong_and_acts_in_the_outer_quantiles(
    harvest: HarvestData,
) -> None:
    parameters, block = Atlas().prepare(harvest), bases.BLOCK
    states = harvest.captured.at_block(block).float()
    odds = states @ parameters[f"weight {block}"] + parameters[f"bias {block}"]
    right = right_states(harvest)
    assert float(odds[right].mean()) > float(odds[~right].mean())
    acted = (odds <= parameters[f"low {block} 0.25"]).float().mean()
    assert float(acted) == pytest.approx(0.25, abs=0.02)
    acted = (odds >= parameters[f"high {block} 0.25"]).float().mean()
    assert float(acted) == pytest.approx(0.25, abs=0.02)
    # Each vector is a difference within problems: taking any vector off a problem's states changes nothing.
    numbers = {prompt.prompt_id: i for i, prompt in enumerate(harvest.prompts)}
    moves = torch.randn(len(numbers), states.shape[1], generator=torch.Generator().manual_seed(0))
    moved = torch.stack([moves[numbers[label.prompt_id]] for label in harvest.captured.labels])
    shifted = dataclasses.replace(
        harvest,
        captured=dataclasses.replace(
            harvest.captured, states=harvest.captured.states + moved[:, None]
        ),
    )
    again = Atlas().prepare(shifted)
    for name in ("right", "short"):
        torch.testing.assert_close(
            again[f"{name} {block}"], parameters[f"{name} {block}"], atol=1e-4, rtol=1e-3
        )
    same_end = [
        dataclasses.replace(g, grade=dataclasses.replace(g.grade, correct=True))
        for g in harvest.graded
    ]
    with pytest.raises(NotApplicable, match="right and wrong"):
        Atlas().prepare(dataclasses.replace(harvest, graded=same_end))
