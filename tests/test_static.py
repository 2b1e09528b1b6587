"""The static control steers every control point alike."""

from __future__ import annotations

import pytest
import torch

from stir_train.config.steering import StaticSteering
from stir_train.generation.controller import ControlBatch
from stir_train.steering.controls import empty_basis
from stir_train.steering.static import StaticController, mean_direction
from tests.support import bases

CPU = torch.device("cpu")


def test_every_row_gets_the_same_vector_at_the_corrections_norm() -> None:
    basis = bases.basis()
    settings = StaticSteering(strength=2.0)
    controller = StaticController(basis, settings, block=bases.BLOCK, device=CPU)
    states = torch.randn(5, basis.directions.shape[1])
    batch = ControlBatch(tuple("abcde"), (0,) * 5, torch.arange(1, 6), (3,) * 5)
    impulses = controller.decide(states, batch)
    assert impulses is not None
    assert bool(impulses.fires.all())
    assert impulses.chosen.tolist() == [-1] * 5
    mine = (basis.blocks == bases.BLOCK) & ~basis.is_anchor
    norm = float(basis.directions[mine].norm(dim=-1).median())
    assert float(impulses.deltas[0].norm()) == pytest.approx(2 * norm, rel=1e-4)
    assert torch.equal(impulses.deltas, impulses.deltas[:1].expand(5, -1))
    cosine = torch.nn.functional.cosine_similarity(
        impulses.deltas[0], basis.directions[mine].mean(0), dim=0
    )
    assert float(cosine) == pytest.approx(1.0, abs=1e-5)


def test_without_entries_it_does_nothing() -> None:
    nothing = empty_basis(bases.basis())
    assert not mean_direction(nothing, bases.BLOCK).any()
    controller = StaticController(nothing, StaticSteering(), block=bases.BLOCK, device=CPU)
    batch = ControlBatch(("a",), (0,), torch.tensor([1]), (3,))
    states = torch.randn(1, nothing.directions.shape[1])
    assert controller.decide(states, batch) is None
