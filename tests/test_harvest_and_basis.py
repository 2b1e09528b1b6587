"""Contrasts and selection against the definitions written out slowly."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stir_train.basis.diagnostics import diagnose, warnings_of
from stir_train.basis.dpp import KeysInMemory, greedy_select
from stir_train.config.stages import BasisConfig
from stir_train.errors import ArtifactError, StageError
from stir_train.harvest.contrast import contrast_rollouts
from tests.support import bases
from tests.support.published_selection import objective, published_greedy


def test_contrasts_equal_the_definition_written_as_a_loop() -> None:
    graded, captured = bases.harvest()
    state = {
        (label.prompt_id, label.sample, label.point): captured.states[i]
        for i, label in enumerate(captured.labels)
    }
    expected = {}
    for prompt_id in dict.fromkeys(g.rollout.prompt_id for g in graded):
        mine = [g for g in graded if g.rollout.prompt_id == prompt_id]
        for point in range(1, bases.MAX_POINTS + 1):
            here = [g for g in mine if (prompt_id, g.rollout.sample, point) in state]
            right = sorted((g for g in here if g.grade.correct), key=lambda g: -g.reward)[:2]
            wrong = sorted(
                (g for g in here if not g.grade.correct and not g.rollout.truncated),
                key=lambda g: g.reward,
            )[:3]
            if not right or not wrong:
                continue
            quality = sum(g.reward for g in right) / len(right)
            quality -= sum(g.reward for g in wrong) / len(wrong)
            if quality > 0:

                def mean(group: list, point: int = point) -> torch.Tensor:
                    keys = [(g.rollout.prompt_id, g.rollout.sample, point) for g in group]
                    return torch.stack([state[key] for key in keys]).mean(0)

                expected[prompt_id, point] = mean(right), mean(wrong), quality
    found = bases.candidates()
    places = list(zip(found.prompt_ids, found.points.tolist(), strict=True))
    assert places == list(expected)
    for i, (right_mean, wrong_mean, quality) in enumerate(expected.values()):
        torch.testing.assert_close(found.mean_right[i], right_mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.mean_wrong[i], wrong_mean, atol=1e-5, rtol=1e-5)
        assert float(found.quality[i]) == pytest.approx(quality, abs=1e-5)


def test_states_that_do_not_belong_to_the_rollouts_are_refused() -> None:
    graded, captured = bases.harvest()
    options = dict(max_points=8, num_positive=2, num_negative=3, keep_truncated=False)
    wrong = dataclasses.replace(captured.labels[0], token_id=captured.labels[0].token_id + 1)
    altered = dataclasses.replace(captured, labels=(wrong, *captured.labels[1:]))
    with pytest.raises(ArtifactError, match="token id"):
        contrast_rollouts(graded, altered, **options)
    with pytest.raises(ArtifactError, match="not in this chunk"):
        contrast_rollouts(graded[8:], captured, **options)


def _problem(seed: int, count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=-1)
    return keys.double(), torch.rand(count, generator=generator)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 8), size=st.integers(1, 8))
def test_each_pick_is_the_best_by_brute_force(seed: int, count: int, size: int) -> None:
    keys, quality = _problem(seed, count, 4)
    found = greedy_select(KeysInMemory(keys), quality, size, diversity=0.5, jitter=1e-4)
    picked: list[int] = []
    for pick, value in zip(found.picks, found.objective, strict=True):
        rest = [i for i in range(count) if i not in picked]
        scores = {i: objective(keys, quality, [*picked, i], 0.5, 1e-4) for i in rest}
        assert scores[pick] == pytest.approx(max(scores.values()), abs=1e-5)
        picked.append(pick)
        assert value == pytest.approx(scores[pick], abs=1e-5)
    assert len(found.picks) == min(size, count)


def test_picks_equal_the_published_loop_and_greedy_is_near_the_optimum() -> None:
    keys, quality = _problem(0, 60, 16)
    mine = greedy_select(KeysInMemory(keys), quality, 20, diversity=0.5, jitter=1e-4)
    assert list(mine.picks) == published_greedy(keys, quality, 20, 0.5, 1e-4)
    keys, quality = _problem(1, 8, 8)
    best = max(
        objective(keys, quality, list(subset), 0.5, 1e-4)
        for subset in itertools.combinations(range(8), 3)
    )
    found = greedy_select(KeysInMemory(keys), quality, 3, diversity=0.5, jitter=1e-4).objective[-1]
    assert found <= best + 1e-6
    assert found >= best - 0.2


def test_forced_rows_come_first_and_the_greedy_goes_on_from_them() -> None:
    keys, quality = _problem(2, 30, 8)
    found = greedy_select(
        KeysInMemory(keys), quality, 10, diversity=0.5, jitter=1e-4, forced=[7, 3]
    )
    assert found.picks[:2] == (7, 3)
    picked = [7, 3]
    for pick in found.picks[2:]:
        rest = [i for i in range(30) if i not in picked]
        scores = {i: objective(keys, quality, [*picked, i], 0.5, 1e-4) for i in rest}
        assert pick == max(scores, key=lambda i: (scores[i], -i))
        picked.append(pick)


def test_duplicates_stay_finite_and_ties_go_to_the_lower_row() -> None:
    keys = torch.eye(3)[[0, 0, 0, 1, 2]]
    found = greedy_select(KeysInMemory(keys), torch.ones(5), 5, diversity=0.5, jitter=1e-4)
    assert found.picks == (0, 3, 4, 1, 2)
    assert all(math.isfinite(value) for value in found.objective)


@pytest.mark.parametrize("selection", ["greedy", "top", "random"])
@pytest.mark.parametrize("size", [16, 33, 10_000])
def test_every_correction_comes_with_its_anchor(selection: str, size: int) -> None:
    config = BasisConfig(size=size, selection=selection, min_per_point=2)
    for part in bases.select(bases.candidates(), config):
        basis = part.basis
        corrections = basis.contrast[~basis.is_anchor].tolist()
        assert sorted(corrections) == sorted(basis.contrast[basis.is_anchor].tolist())
        assert len(basis) == min(size - size % 2, 2 * len(bases.candidates()))
        assert (basis.blocks == part.block).all()
        assert (basis.directions[basis.is_anchor] == 0).all()
        if size < 10_000:
            assert set(basis.points.tolist()) == set(bases.candidates().points.tolist())


def test_no_contrast_is_an_error_that_says_what_to_do() -> None:
    none = bases.candidates()
    empty = dataclasses.replace(
        none,
        prompt_ids=(),
        points=none.points[:0],
        quality=none.quality[:0],
        mean_right=none.mean_right[:0],
        mean_wrong=none.mean_wrong[:0],
        saves_tokens=none.saves_tokens[:0],
    )
    with pytest.raises(StageError, match="always or never solves"):
        bases.select(empty, BasisConfig())


def test_diagnostics_warn_about_a_contrast_of_nothing() -> None:
    real = bases.candidates()
    assert not warnings_of(real, [diagnose(real, block)[0] for block in real.blocks])
    generator = torch.Generator().manual_seed(0)
    noise = 1e-3 * torch.randn(real.mean_right.shape, generator=generator)
    flat = dataclasses.replace(real, mean_wrong=real.mean_right + noise)
    diagnosed = [diagnose(flat, block) for block in flat.blocks]
    for (_, norms), layer in zip(diagnosed, range(len(flat.blocks)), strict=True):
        torch.testing.assert_close(norms, noise[:, layer].norm(dim=-1), rtol=1e-2, atol=1e-5)
    found = " ".join(warnings_of(flat, [block for block, _ in diagnosed]))
    assert "near zero" in found
    assert "halves" in found
