"""Directions from gradients and advantages: sums, tests of whether there is anything, controls, files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stir_train.artifacts.run_dir import StageDir, StageInputs
from stir_train.directions.advantages import Advantages, accuracy, at_price, leave_one_out
from stir_train.directions.controls import (
    mean_differences,
    permuted_directions,
    random_directions,
)
from stir_train.directions.estimate import (
    Estimate,
    anything_to_steer,
    estimate_directions,
    ordered_sum,
)
from stir_train.directions.gradients import (
    rollout_gradients,
)
from stir_train.errors import ArtifactError, StageError
from stir_train.stores.directions import (
    load_directions,
    load_gradients,
    load_points,
    save_directions,
    save_gradients,
    save_points,
)
from stir_train.types.directions import PLACES, RolloutGradients
from tests.support import tiny_models
from tests.support.recorded import (
    BLOCKS,
    SETTINGS,
    graded,
    some_rollouts,
)


def test_advantages_leave_one_out() -> None:
    items = [graded("a", 0, 1.0), graded("a", 1, 0.0), graded("a", 2, 0.0)]
    items += [graded("b", 0, 1.0), graded("b", 1, 1.0), graded("c", 0, 1.0)]
    found = leave_one_out(items)
    assert found.num_rollouts == 6
    assert set(found.by_rollout) == {("a", 0), ("a", 1), ("a", 2)}
    assert found.of(("a", "b", "a"), (0, 0, 2)) == [1.0, 0.0, -0.5]


def test_a_price_makes_equal_answers_unequal() -> None:
    items = [graded("b", 0, 1.0, tokens=10), graded("b", 1, 1.0, tokens=30)]
    found = leave_one_out(items, at_price(accuracy, 0.01))
    assert found.by_rollout[("b", 0)] == pytest.approx(0.2)
    assert found.by_rollout[("b", 1)] == pytest.approx(-0.2)


WIDTH, NUM_PROBLEMS, NUM_SAMPLES = 24, 60, 4


def synthetic(seed: int, *, planted: float) -> tuple[RolloutGradients, Advantages]:
    """Noise; in block 1 at the prompt's end, advantages also lie along one direction."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(NUM_PROBLEMS, NUM_SAMPLES, generator=generator).round()
    items = [
        graded(f"p{problem}", sample, float(rewards[problem, sample]))
        for problem in range(NUM_PROBLEMS)
        for sample in range(NUM_SAMPLES)
    ]
    advantages = leave_one_out(items)
    keys = sorted(advantages.by_rollout)
    sums = torch.randn(len(keys), len(PLACES), len(BLOCKS), WIDTH, generator=generator)
    weights = torch.tensor([advantages.by_rollout[key] for key in keys])
    sums[:, PLACES.index("prompt_end"), 0, 0] += planted * weights
    return (
        RolloutGradients(
            tuple(k[0] for k in keys),
            tuple(k[1] for k in keys),
            BLOCKS,
            torch.zeros(len(keys)),
            sums,
            torch.rand(len(keys), len(BLOCKS), generator=generator),
            torch.randn(sums.shape, generator=generator),
        ),
        advantages,
    )


def take(gradients: RolloutGradients, rows: Sequence[int]) -> RolloutGradients:
    return RolloutGradients(
        tuple(gradients.prompt_ids[i] for i in rows),
        tuple(gradients.samples[i] for i in rows),
        gradients.blocks,
        gradients.logprobs[list(rows)],
        gradients.sums[list(rows)],
        gradients.state_norms[list(rows)],
        gradients.state_means[list(rows)],
    )


def bytes_of(estimate: Estimate) -> tuple[bytes, object]:
    return estimate.directions.directions.numpy().tobytes(), estimate.table


def test_sums_are_the_same_bytes_for_any_chunks() -> None:
    gradients, advantages = synthetic(0, planted=1.0)
    whole = bytes_of(estimate_directions(gradients, advantages, seed=0))
    order = torch.randperm(len(gradients), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = take(gradients, order)
    assert bytes_of(estimate_directions(shuffled, advantages, seed=0)) == whole
    for size in (1, 7, 50):
        chunks = [take(gradients, order[i : i + size]) for i in range(0, len(order), size)]
        joined = RolloutGradients.concatenate(chunks)
        assert bytes_of(estimate_directions(joined, advantages, seed=0)) == whole


def test_noise_is_nothing_to_steer_and_a_planted_direction_is() -> None:
    found = beaten = 0
    for seed in range(40):
        gradients, advantages = synthetic(seed, planted=0.0)
        table = estimate_directions(gradients, advantages, seed=seed, num_permutations=20).table
        found += bool(anything_to_steer(table))
        beaten += any(row.beats_all_permutations for row in table)
    assert beaten > 8, "among many rows some are lucky"
    assert found <= 6, "of which one in twenty is allowed"
    gradients, advantages = synthetic(0, planted=1.0)
    estimate = estimate_directions(gradients, advantages, seed=0)
    (row,) = anything_to_steer(estimate.table)
    assert (row.block, row.place) == (1, "prompt_end")
    assert row.p_value == row.family_p_value == pytest.approx(1 / 201)
    assert row.split_half_cosine > 0.3
    assert row.permuted_mean < row.permuted_max < row.gain
    vector = estimate.directions.vector(1, "prompt_end")
    assert float(vector.norm()) == pytest.approx(1, abs=1e-5)
    assert float(vector[0]) > 0.8
    weights = torch.tensor(advantages.of(gradients.prompt_ids, gradients.samples)).double()
    exact = ordered_sum(weights, gradients.at(1, "prompt_end")) / advantages.num_rollouts
    assert row.gain == pytest.approx(float(exact.norm()))
    # What chance adds to a norm is taken away again.
    planted = float((weights @ weights) / advantages.num_rollouts)
    assert row.gain_above_chance == pytest.approx(planted, rel=0.3)


def test_permuted_advantages_are_a_control() -> None:
    gradients, advantages = synthetic(0, planted=1.0)
    control = permuted_directions(gradients, advantages, seed=3)
    assert not anything_to_steer(control.table)
    assert control.num_rollouts == advantages.num_rollouts
    other = permuted_directions(gradients, advantages, seed=4)
    assert not torch.equal(control.directions.directions, other.directions.directions)


def test_mean_differences_are_of_right_and_wrong_rollouts_of_each_problem() -> None:
    gradients, advantages = synthetic(0, planted=1.0)
    directions = estimate_directions(gradients, advantages, seed=0).directions
    found = mean_differences(directions, gradients, advantages)
    assert (found.places, found.blocks.tolist()) == (directions.places, directions.blocks.tolist())
    worth = torch.tensor(advantages.of(gradients.prompt_ids, gradients.samples))
    for block, place in zip(found.blocks.tolist(), found.places, strict=True):
        total = (worth[:, None] * gradients.mean_states_at(block, place)).sum(0)
        wanted = total / total.norm() * (place != "prompt_end")
        torch.testing.assert_close(found.vector(block, place), wanted)


def test_a_state_that_all_share_is_no_difference_also_where_some_lack_the_place() -> None:
    gradients, advantages = synthetic(0, planted=1.0)
    directions = estimate_directions(gradients, advantages, seed=0).directions
    shared = 100 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    lacking = torch.rand(len(gradients), generator=torch.Generator().manual_seed(3)) < 0.3

    def found(moved: float) -> Tensor:
        means = gradients.state_means + moved * shared
        means[lacking] = 0
        some = dataclasses.replace(gradients, state_means=means)
        return mean_differences(directions, some, advantages).directions

    torch.testing.assert_close(found(1.0), found(0.0), atol=1e-4, rtol=1e-4)


def test_random_directions_keep_places_and_norm_alone() -> None:
    gradients, advantages = synthetic(0, planted=1.0)
    directions = estimate_directions(gradients, advantages, seed=0).directions
    control = random_directions(directions, seed=1)
    assert control.places == directions.places
    torch.testing.assert_close(control.directions.norm(dim=1), torch.ones(len(control)))
    assert torch.equal(control.directions, random_directions(directions, seed=1).directions)
    assert float(control.gains.abs().max()) == 0


def test_no_unequal_rewards_is_said() -> None:
    gradients, advantages = synthetic(0, planted=0.0)
    with pytest.raises(StageError, match="unequal reward"):
        estimate_directions(gradients, Advantages({}, 10), seed=0)
    with pytest.raises(StageError, match="have no gradients"):
        estimate_directions(take(gradients, range(5)), advantages, seed=0)


@pytest.fixture
def stage(tmp_path: Path) -> StageDir:
    made = StageDir(tmp_path / "directions")
    made.begin(StageInputs(config={}, sources={}))
    return made


def test_files_hold_everything_and_know_their_model(stage: StageDir) -> None:
    loaded = tiny_models.build("phi")
    found, _ = rollout_gradients(loaded, some_rollouts(), SETTINGS)
    save_gradients(stage, "gradients.safetensors", found, loaded.identity)
    same = load_gradients(stage.path / "gradients.safetensors", loaded.identity)
    assert torch.equal(same.sums, found.sums)
    assert (same.prompt_ids, same.samples, same.blocks) == (
        found.prompt_ids,
        found.samples,
        found.blocks,
    )
    assert same.points is None
    assert found.points is not None
    save_points(stage, "points.safetensors", found.points, found.blocks, loaded.identity)
    points, blocks = load_points(stage.path / "points.safetensors", loaded.identity)
    assert blocks == found.blocks
    assert points.labels == found.points.labels
    for name in ("states", "at_point", "over_segment"):
        assert torch.equal(getattr(points, name), getattr(found.points, name))
    gradients, advantages = synthetic(0, planted=1.0)
    directions = estimate_directions(gradients, advantages, seed=0).directions
    save_directions(stage, "directions.safetensors", directions, loaded.identity)
    again = load_directions(stage.path / "directions.safetensors", loaded.identity)
    assert torch.equal(again.directions, directions.directions)
    assert again.places == directions.places
    other = dataclasses.replace(loaded.identity, weights_sha256="another")
    readers: list[tuple[Callable[..., object], str]] = [
        (load_directions, "directions.safetensors"),
        (load_gradients, "gradients.safetensors"),
        (load_points, "points.safetensors"),
    ]
    for read, name in readers:
        with pytest.raises(ArtifactError, match="was made for model"):
            read(stage.path / name, other)
