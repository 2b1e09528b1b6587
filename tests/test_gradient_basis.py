"""A control basis whose entries steer along the reward gradients at states like their keys."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.directions.advantages import Advantages
from stir_train.directions.cells import CellSums
from stir_train.errors import ConfigError, StageError
from stir_train.recipes import directions as recipe
from stir_train.stores.reports import load_report
from stir_train.stores.steering import load_basis
from stir_train.types.directions import PointGradients
from stir_train.types.reports import BasisReport
from stir_train.types.steering import ControlBasis
from stir_train.types.trajectory import StateLabel
from tests.support.smoke import SMOKE, run_smoke

WIDTH, BLOCK, NUM_PROBLEMS = 16, 3, 60
KEYS = torch.eye(WIDTH)[:3]
"""Of a correction at point 1, another there, and one at point 2."""


def _basis() -> ControlBasis:
    anchors = torch.eye(WIDTH)[3:4]
    generator = torch.Generator().manual_seed(1)
    differences = torch.randn(3, WIDTH, generator=generator)
    return ControlBasis(
        keys=torch.cat([KEYS, anchors]),
        directions=torch.cat([differences, torch.zeros(1, WIDTH)]),
        blocks=torch.full((4,), BLOCK),
        points=torch.tensor([1, 1, 2, 1]),
        quality=torch.ones(4),
        is_anchor=torch.tensor([False, False, False, True]),
        saves_tokens=torch.zeros(4, dtype=torch.bool),
        contrast=torch.tensor([0, 1, 2, 0]),
    )


def _recorded(
    wanted: Tensor, *, noise: float = 0.0, first: int = 0, seed: int = 0
) -> tuple[PointGradients, Advantages]:
    """Two samples a problem, one right: their gradients point along and against ``wanted[cell]``.

    Even problems reach point 1 near the first key, odd ones near the second; all reach point 2 near the first,
    which is of point 1, so that the only key of point 2 is theirs. The prompt's end carries a gradient too, which is no control point's.
    """
    labels, states, gradients, worth = [], [], [], {}
    for number in range(first, first + NUM_PROBLEMS):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        for sample, advantage in enumerate((1.0, -1.0)):
            prompt_id = f"p{number:03d}"
            worth[prompt_id, sample] = advantage
            for point, cell in ((0, None), (1, number % 2), (2, 2)):
                labels.append(StateLabel(prompt_id, sample, point, 5 * point - 1, 7))
                near = torch.ones(WIDTH) if cell is None else KEYS[cell % 2]
                states.append(9 * near + 0.1 * torch.randn(WIDTH, generator=generator))
                planted = torch.full((WIDTH,), 50.0) if cell is None else advantage * wanted[cell]
                gradients.append(planted + noise * torch.randn(WIDTH, generator=generator))
    stacked = torch.stack(gradients)[:, None]
    points = PointGradients(tuple(labels), torch.stack(states)[:, None], stacked, stacked)
    return points, Advantages(worth, 2 * NUM_PROBLEMS)


def test_a_cell_gets_the_direction_of_the_states_nearest_to_its_key() -> None:
    generator = torch.Generator().manual_seed(3)
    wanted = torch.randn(3, WIDTH, generator=generator)
    basis = _basis()
    sums = CellSums(basis)
    points, worth = _recorded(wanted, noise=0.1)
    sums.add(points, (BLOCK,), worth)
    made, (summary,) = sums.directions()
    cosines = torch.nn.functional.cosine_similarity(made.directions[:3], wanted, dim=-1)
    assert bool((cosines > 0.99).all())
    assert (summary.num_entries, summary.num_own) == (3, 3)
    assert summary.own_mean > 0.95
    assert summary.problems_median == NUM_PROBLEMS / 2
    # A strength means the same as with differences of means; anchors stay.
    norm = basis.directions[:3].norm(dim=-1).median()
    torch.testing.assert_close(made.directions[:3].norm(dim=-1), norm.expand(3))
    assert not made.directions[3].any()
    assert torch.equal(made.keys, basis.keys)


def test_cells_that_differ_by_noise_alone_share_one_direction() -> None:
    same = torch.ones(1, WIDTH).expand(3, WIDTH)
    shares = []
    for seed in range(20):
        sums = CellSums(_basis())
        points, worth = _recorded(same, noise=3.0, seed=seed)
        sums.add(points, (BLOCK,), worth)
        made, (summary,) = sums.directions()
        shares.append(summary.own_mean)
        cosines = torch.nn.functional.cosine_similarity(made.directions[:3], same, dim=-1)
        assert bool((cosines > 0.9).all())
    assert sum(shares) / len(shares) < 0.2


def test_how_rollouts_are_cut_into_chunks_changes_nothing() -> None:
    wanted = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(3))
    parts = [_recorded(wanted, noise=1.0, first=first) for first in (0, NUM_PROBLEMS)]
    whole = PointGradients(
        tuple(label for points, _ in parts for label in points.labels),
        *(
            torch.cat([getattr(points, name) for points, _ in parts])
            for name in ("states", "at_point", "over_segment")
        ),
    )
    both = Advantages(parts[0][1].by_rollout | parts[1][1].by_rollout, 4 * NUM_PROBLEMS)
    at_once, in_parts = CellSums(_basis()), CellSums(_basis())
    at_once.add(whole, (BLOCK,), both)
    for points, worth in parts:
        in_parts.add(points, (BLOCK,), worth)
    assert torch.equal(at_once.directions()[0].directions, in_parts.directions()[0].directions)


def test_a_block_without_a_gradient_is_refused() -> None:
    points, worth = _recorded(torch.zeros(3, WIDTH))
    sums = CellSums(_basis())
    sums.add(points, (BLOCK,), worth)
    with pytest.raises(StageError, match="no direction to steer in"):
        sums.directions()
    with pytest.raises(StageError, match="block 3"):
        CellSums(_basis()).add(points, (BLOCK + 1,), worth)


def test_every_harvested_block_must_be_differentiated() -> None:
    settings = ["basis.directions=reward_gradient", "directions.depths=[0.5]"]
    with pytest.raises(ConfigError, match=r"directions\.depths"):
        load_config(RunConfig, SMOKE, settings)


SETTINGS = (
    "basis.directions=reward_gradient",
    "rollout.temperature=1.0",
    "generation.chunk_completions=32",
    "distill.enabled=false",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As far as the basis, several chunks of rollouts long."""
    output = tmp_path_factory.mktemp("gradients")
    for verb in ("rollout", "directions", "harvest", "basis"):
        done = run_smoke(output, *SETTINGS, verb=verb)
        assert done.returncode == 0, done.stderr
    assert "along reward gradients" in " ".join(done.stderr.split())
    return output


def test_a_basis_of_gradients_has_the_same_entries_and_steers_elsewhere(
    made: Path, tmp_path: Path
) -> None:
    run = RunDir(made / "smoke")
    (basis, _), report = (
        load_basis(run.stage("basis")),
        load_report(run.stage("basis"), BasisReport),
    )
    assert not basis.saves_tokens.any()
    assert [cell.block for cell in report.cells] == basis.blocks.unique().tolist()
    for stage in ("rollout", "harvest"):
        shutil.copytree(run.stage(stage).path, tmp_path / "smoke" / stage)
    done = run_smoke(tmp_path, *SETTINGS, "basis.directions=difference", verb="basis")
    assert done.returncode == 0, done.stderr
    plain = RunDir(tmp_path / "smoke").stage("basis")
    differences, _ = load_basis(plain)
    right = differences.select(~differences.saves_tokens)
    assert torch.equal(right.keys, basis.keys)
    assert torch.equal(right.directions[right.is_anchor], basis.directions[basis.is_anchor])
    assert not torch.allclose(right.directions, basis.directions)
    assert load_report(plain, BasisReport).cells == ()


def test_points_whose_chunk_was_cut_off_are_made_again_to_the_same_bytes(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "smoke" / "rollout", tmp_path / "smoke" / "rollout")
    whole, num_saved = recipe.save_gradients, 0

    def stop_behind_the_points(*arguments: object) -> None:
        nonlocal num_saved
        num_saved += 1
        if num_saved == 2:
            raise KeyboardInterrupt
        whole(*arguments)  # type: ignore[arg-type]

    with mock.patch.object(recipe, "save_gradients", stop_behind_the_points):
        assert run_smoke(tmp_path, *SETTINGS, verb="directions").returncode != 0
    stage, expected = (output / "smoke" / "directions" for output in (tmp_path, made))
    assert len(list(stage.glob("points-*"))) == len(list(stage.glob("gradients-*"))) + 1
    done = run_smoke(tmp_path, *SETTINGS, verb="directions")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in expected.glob("*.safetensors"))
    assert names == sorted(path.name for path in stage.glob("*.safetensors"))
    assert "points-00001.safetensors" in names
    for name in names:
        assert (stage / name).read_bytes() == (expected / name).read_bytes()


def test_damaged_points_are_named(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "smoke" / "basis")
    points = tmp_path / "copy" / "smoke" / "directions" / "points-00000.safetensors"
    points.write_bytes(points.read_bytes()[:-1] + b"?")
    done = run_smoke(tmp_path / "copy", *SETTINGS, verb="basis")
    assert done.returncode == 1
    assert points.name in done.stderr
