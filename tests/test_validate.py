"""Causal validation: what is tried, what the outcomes say, and what is kept."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch

from stir_train.basis.validate import (
    EntryUplift,
    Injection,
    StatePool,
    entry_uplifts,
    mean_gain,
    plan_trials,
    still_promising,
    validated_basis,
)
from stir_train.config.stages import BasisConfig
from stir_train.generation.backend import GenerationRequest, PlannedImpulse, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.harvest.contrast import contrast_rollouts
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt
from stir_train.types.steering import UNSTEERED, Candidates, ControlBasis, Intervention
from stir_train.types.utility import Utility
from stir_train.value.targets import build_intervened
from tests.support import bases

PRICE, BUDGET = 0.5, 100
MIN_SAVING = 0.25


def _both_kinds() -> Candidates:
    graded, states = bases.harvest()
    return contrast_rollouts(
        graded,
        states,
        max_points=bases.MAX_POINTS,
        num_positive=2,
        num_negative=3,
        keep_truncated=False,
        min_saving=MIN_SAVING,
    )


def _basis() -> ControlBasis:
    parts = bases.select(_both_kinds(), BasisConfig(size=48, min_per_point=2))
    return ControlBasis.concatenate([part.basis for part in parts])


def _trial(entry: int, correct: bool, tokens: int, **changes: object) -> Intervention:
    base = Intervention(
        prompt_id="p",
        state=0,
        point=1,
        token_index=9,
        block=bases.BLOCK,
        entry=entry,
        strength=2.0,
        propensity=0.5,
        improvable=True,
        correct=correct,
        tokens=tokens,
        null_correct=False,
        null_tokens=60,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_short_against_long_contrasts_equal_the_definition_written_as_a_loop() -> None:
    graded, captured = bases.harvest()
    state = {
        (label.prompt_id, label.sample, label.point): (captured.states[i], label.token_index)
        for i, label in enumerate(captured.labels)
    }
    expected = {}
    for prompt_id in dict.fromkeys(g.rollout.prompt_id for g in graded):
        right = [g for g in graded if g.rollout.prompt_id == prompt_id and g.grade.correct]
        for point in range(1, bases.MAX_POINTS + 1):
            left = {
                g.rollout.sample: len(g.rollout.token_ids) - 1 - state[key][1]
                for g in right
                if (key := (prompt_id, g.rollout.sample, point)) in state
            }
            if not left:
                continue
            short = sorted(left, key=lambda s: left[s])[:2]
            long = sorted(left, key=lambda s: -left[s])[:3]
            mean_short = sum(left[s] for s in short) / len(short)
            mean_long = sum(left[s] for s in long) / len(long)
            saving = (mean_long - mean_short) / max(mean_long, 1)
            if saving > MIN_SAVING:
                expected[prompt_id, point] = (
                    torch.stack([state[prompt_id, s, point][0] for s in short]).mean(0),
                    torch.stack([state[prompt_id, s, point][0] for s in long]).mean(0),
                    saving,
                )
    both = _both_kinds()
    found = both.select(both.saves_tokens)
    assert expected
    assert list(zip(found.prompt_ids, found.points.tolist(), strict=True)) == list(expected)
    for i, (short_mean, long_mean, saving) in enumerate(expected.values()):
        torch.testing.assert_close(found.mean_right[i], short_mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.mean_wrong[i], long_mean, atol=1e-5, rtol=1e-5)
        assert float(found.quality[i]) == pytest.approx(saving, abs=1e-5)


def test_the_published_part_of_the_basis_is_what_it_is_without_the_other_kind() -> None:
    basis = _basis()
    alone = bases.select(bases.candidates(), BasisConfig(size=48, min_per_point=2))
    published = ControlBasis.concatenate([part.basis for part in alone])
    kept = basis.select(~basis.saves_tokens)
    for field in dataclasses.fields(ControlBasis):
        assert torch.equal(getattr(kept, field.name), getattr(published, field.name)), field.name
    assert bool(basis.saves_tokens.any())


@dataclasses.dataclass(frozen=True)
class _Pooled:
    states: torch.Tensor

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        return self.states[index]


def _pool() -> StatePool:
    _, captured = bases.harvest()
    points = torch.tensor([label.point for label in captured.labels])
    unsteered = torch.full((len(points),), UNSTEERED)
    return StatePool(
        _Pooled(captured.states),
        points,
        torch.ones(len(points)),
        captured.blocks,
        steered=unsteered,
    )


def test_trials_draw_active_corrections_of_their_own_block_and_point() -> None:
    basis, pool = _basis(), _pool()
    active = torch.rand(len(basis), generator=torch.Generator().manual_seed(1)) < 0.7
    injections = [Injection(3, 1.0), Injection(4, 2.0)]
    plans = plan_trials(pool, basis, active, injections, 500, torch.Generator().manual_seed(0))
    assert plans == plan_trials(
        pool, basis, active, injections, 500, torch.Generator().manual_seed(0)
    )
    assert len(plans) > 300
    for plan in plans:
        assert active[plan.entry]
        assert not basis.is_anchor[plan.entry]
        assert int(basis.blocks[plan.entry]) == plan.block
        assert int(basis.points[plan.entry]) == int(pool.points[plan.state])
        assert Injection(plan.block, plan.strength) in injections
        assert 0 < plan.propensity <= 0.5
    only = torch.zeros(len(basis), dtype=torch.bool)
    only[plans[0].entry] = True
    alone = plan_trials(pool, basis, only, injections, 300, torch.Generator().manual_seed(0))
    assert {plan.entry for plan in alone} == {plans[0].entry}
    assert {plan.propensity for plan in alone} == {0.5}


def test_states_are_tried_as_often_as_their_weight_says() -> None:
    pool = _pool()
    weights = torch.zeros_like(pool.weights)
    weights[[3, 8]] = torch.tensor([3.0, 1.0])
    pool = dataclasses.replace(pool, weights=weights)
    everything = torch.ones(len(_basis()), dtype=torch.bool)
    plans = plan_trials(
        pool, _basis(), everything, [Injection(4, 1.0)], 400, torch.Generator().manual_seed(0)
    )
    states = [plan.state for plan in plans]
    assert set(states) == {3, 8}
    assert 2 < states.count(3) / states.count(8) < 4.5


def test_from_a_steered_state_only_its_own_block_is_tried() -> None:
    basis, pool = _basis(), _pool()
    everything = torch.ones(len(basis), dtype=torch.bool)
    steered = torch.full_like(pool.steered, UNSTEERED)
    steered[::2] = 4
    pool = dataclasses.replace(pool, steered=steered)
    injections = [Injection(3, 1.0), Injection(4, 1.0), Injection(4, 2.0)]
    plans = plan_trials(pool, basis, everything, injections, 400, torch.Generator().manual_seed(0))
    assert {plan.block for plan in plans if plan.state % 2 == 0} == {4}
    assert {plan.block for plan in plans if plan.state % 2} == {3, 4}
    elsewhere = plan_trials(
        pool, basis, everything, [Injection(3, 1.0)], 400, torch.Generator().manual_seed(0)
    )
    assert {plan.state % 2 for plan in elsewhere} == {1}


def test_half_of_the_trials_take_what_a_guide_likes_best() -> None:
    basis, pool = _basis(), _pool()
    everything = torch.ones(len(basis), dtype=torch.bool)
    favourites: dict[int, list[bool]] = {}

    def guide(block: int, point: int, state: torch.Tensor, impulses: torch.Tensor) -> torch.Tensor:
        assert block == 4
        here = ~basis.is_anchor & (basis.blocks == 4) & (basis.points == point)
        torch.testing.assert_close(impulses, 2.0 * basis.directions[here])
        return torch.arange(len(impulses), dtype=torch.float)

    plans = plan_trials(
        pool,
        basis,
        everything,
        [Injection(4, 2.0)],
        600,
        torch.Generator().manual_seed(0),
        guide=guide,
    )
    for plan in plans:
        here = ~basis.is_anchor & (basis.blocks == 4) & (basis.points == pool.points[plan.state])
        last = int(here.nonzero()[-1, 0])
        favourites.setdefault(int(here.sum()), []).append(plan.entry == last)
        assert (plan.propensity > 0.5) == (plan.entry == last)
    share = {count: sum(taken) / len(taken) for count, taken in favourites.items()}
    assert max(share) > 3
    for count, rate in share.items():
        if len(favourites[count]) > 60 and count > 3:
            assert 0.4 < rate < 0.8, (count, rate)


def test_uplifts_are_paired_priced_and_shrunk() -> None:
    trials = [
        _trial(0, True, 60),
        _trial(0, True, 80),
        _trial(1, False, 60),
        _trial(1, False, 100, improvable=False),
    ]
    uplifts = entry_uplifts(trials, 3, Utility(PRICE, BUDGET))
    assert [u.count for u in uplifts] == [2, 1, 0]
    assert uplifts[0].mean == pytest.approx((1.0 + 0.9) / 2)
    assert uplifts[1].mean == 0
    overall = (1.0 + 0.9 + 0.0) / 3
    assert uplifts[0].shrunken == pytest.approx((2 * 0.95 + 4 * overall) / 6)
    assert uplifts[2].shrunken == pytest.approx(overall)
    assert uplifts[0].low < uplifts[0].mean < uplifts[0].high
    assert uplifts[1].high == float("inf")


def test_entries_that_cannot_help_are_given_up() -> None:
    harmful = [_trial(0, False, 60 + i) for i in range(8)]
    helpful = [_trial(1, i % 2 == 0, 60, strength=3.0) for i in range(8)]
    uplifts = entry_uplifts(harmful + helpful, 3, Utility(PRICE, BUDGET))
    assert still_promising(uplifts).tolist() == [False, True, True]
    gain = partial(mean_gain, harmful + helpful, utility=Utility(PRICE, BUDGET))
    assert gain(Injection(bases.BLOCK, 3.0)) == pytest.approx(0.5)
    assert gain(Injection(bases.BLOCK, 2.0)) == 0
    assert gain(Injection(3, 1.0)) == 0


def test_only_helpful_corrections_stay_each_with_its_anchor() -> None:
    basis = _basis()
    corrections = (~basis.is_anchor).nonzero()[:, 0].tolist()
    uplifts = [EntryUplift(i, 0, 0.0, 0.0, 0.0, 0.1) for i in range(len(basis))]
    good, bad = corrections[0], corrections[1]
    uplifts[good] = EntryUplift(good, 5, 0.4, 0.1, 0.7, 0.3)
    uplifts[bad] = EntryUplift(bad, 5, -0.4, -0.7, -0.1, -0.3)
    kept = validated_basis(basis, uplifts)
    assert len(kept) == 2
    assert kept.is_anchor.tolist().count(True) == 1
    assert torch.equal(kept.directions[~kept.is_anchor][0], basis.directions[good])
    assert kept.quality.tolist() == pytest.approx([0.3, 0.3])
    nothing = [EntryUplift(i, 1, -1.0, -1.0, -1.0, -1.0) for i in range(len(basis))]
    assert len(validated_basis(basis, nothing)) == 0


def test_a_replay_without_an_impulse_is_the_rollout_itself(
    loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    engine = DecodeEngine(loaded, max_rows=16)
    sampling = SamplingParams(96, loaded.stop_token_ids)
    greedy = engine.generate([GenerationRequest(p) for p in prompts[:6]], sampling, seed=0).rollouts
    width = loaded.identity.width

    def replay(delta: torch.Tensor) -> list[tuple[int, ...]]:
        requests = [
            GenerationRequest(
                prompt,
                prefix_token_ids=rollout.token_ids[:8],
                planned=(PlannedImpulse(7, bases.BLOCK, delta),),
            )
            for prompt, rollout in zip(prompts[:6], greedy, strict=True)
        ]
        return [r.token_ids for r in engine.generate(requests, sampling, seed=0).rollouts]

    assert replay(torch.zeros(width)) == [r.token_ids for r in greedy]
    shove = 40 * torch.randn(width, generator=torch.Generator().manual_seed(0))
    assert replay(shove) != [r.token_ids for r in greedy]


def test_a_replay_of_a_replay_without_another_impulse_is_the_first_one(
    loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    engine = DecodeEngine(loaded, max_rows=16)
    sampling = SamplingParams(96, loaded.stop_token_ids)
    generator = torch.Generator().manual_seed(0)
    greedy = engine.generate([GenerationRequest(p) for p in prompts[:6]], sampling, seed=0).rollouts
    first = [
        PlannedImpulse(3, bases.BLOCK, 40 * torch.randn(loaded.identity.width, generator=generator))
        for _ in greedy
    ]

    def replay(
        before: list[tuple[int, ...]], at: int, planned: list[tuple[PlannedImpulse, ...]]
    ) -> list[tuple[int, ...]]:
        requests = [
            GenerationRequest(prompt, prefix_token_ids=ids[: at + 1], planned=impulses)
            for prompt, ids, impulses in zip(prompts[:6], before, planned, strict=True)
        ]
        return [r.token_ids for r in engine.generate(requests, sampling, seed=0).rollouts]

    once = replay([r.token_ids for r in greedy], 3, [(impulse,) for impulse in first])
    assert once != [r.token_ids for r in greedy]
    nothing = PlannedImpulse(12, bases.BLOCK, torch.zeros(loaded.identity.width))
    assert replay(once, 12, [(impulse, nothing) for impulse in first]) == once
    again = [(impulse, dataclasses.replace(impulse, token_index=12)) for impulse in first]
    assert replay(once, 12, again) != once


def test_the_head_learns_from_the_states_that_trials_steered() -> None:
    graded, captured = bases.harvest()
    basis = _basis()
    entry = int(((~basis.is_anchor) & (basis.blocks == bases.BLOCK)).nonzero()[0, 0])
    owner = captured.labels[5]
    trials = [
        _trial(entry, True, 50, state=5, prompt_id=owner.prompt_id, point=owner.point),
        _trial(entry, True, 50, state=6, prompt_id=owner.prompt_id, block=3),
    ]
    numbers = bases.prompt_numbers(graded)
    inputs = bases.inputs(captured, basis.directions)
    found = build_intervened(inputs, trials, numbers, block=bases.BLOCK)
    assert len(found) == 1
    examples = found.batch()
    both = [captured.at_block(block)[5] for block in bases.READS]
    assert torch.equal(examples.states[0], torch.cat(both)), "its own block comes last"
    assert torch.equal(examples.impulses[0], 2.0 * basis.directions[entry])
    assert float(examples.log_tokens_left.exp()) == pytest.approx(40)
    assert examples.prompt.tolist() == [numbers[owner.prompt_id]]
