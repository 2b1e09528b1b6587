"""Shapes in signatures are checked in whatever the tests call."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from stir_train.baselines.fractional import turn
from tests import checked_when_called


def test_a_tensor_of_another_shape_is_refused() -> None:
    x, direction = torch.ones(2, 1, 8), torch.ones(8)
    assert turn(x, direction, 0.5).shape == x.shape
    for _ in range(2):  # checked at the first call, and at every other
        with pytest.raises(TypeCheckError, match=r"parameters of .*fractional\.turn"):
            turn(x[0], direction, 0.5)


@jaxtyped(typechecker=checked_when_called)
def _repeated(x: Float[Tensor, "N"], times: int, *, as_list: bool = False) -> Float[Tensor, "N"]:
    found = x.repeat(times)
    return found.tolist() if as_list else found


def test_arguments_and_what_is_returned_are_checked_against_each_other() -> None:
    for _ in range(2):
        assert _repeated(torch.ones(3), 1).shape == (3,)
        for arguments in ((torch.ones(3, 3), 1), (torch.ones(3), "1"), (torch.ones(3).int(), 1)):
            with pytest.raises(TypeCheckError, match="checking the parameters"):
                _repeated(*arguments)
        with pytest.raises(TypeCheckError, match="checking the return value"):
            _repeated(torch.ones(3), 2)
        with pytest.raises(TypeCheckError, match="checking the return value"):
            _repeated(torch.ones(3), 1, as_list=True)
