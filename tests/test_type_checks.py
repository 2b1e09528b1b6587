"""Shapes in signatures are checked in whatever the tests call."""

from __future__ import annotations

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from stir_train.baselines.fractional import turn
from tests import checked_when_called


def test_a_tensor_of_another_shape_is_refused() -> None:
    x, direction = torch.ones(2, 1, 8), torch.ones(8)
    assert turn(x, direction, 0.5).shape == x.shape
    for _ in range(2):  # checked at the first call, and at every other
        with pytest.raises(TypeCheckError, match="fractional.turn"):
            turn(x, direction.expand(2, 8), 0.5)


def test_a_function_is_checked_as_beartype_checks_it() -> None:
    @checked_when_called
    def half(number: int, *, times: int = 1) -> float:
        return number / 2**times

    assert half(4, times=2) == 1.0
    with pytest.raises(BeartypeCallHintViolation):
        half("4")
    with pytest.raises(BeartypeCallHintViolation):
        half(4, times="2")
