"""Shapes in signatures are checked in whatever the tests call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from stir_train.baselines.fractional import turn
from stir_train.types.rollout import Rollout
from tests.support import type_checks
from tests.support.type_checks import EVERY, NUM_FIRST, checked


def _caught(call: Callable[[], object]) -> str:
    """What is said of a wrong call to what may have been called often before: one of so many is checked."""
    said = []
    for _ in range(EVERY):
        with suppress(
            TypeError, ValueError, RuntimeError
        ):  # unchecked, it fails later or not at all
            try:
                call()
            except TypeCheckError as error:
                said.append(str(error))
    assert said
    return said[0]


def test_a_tensor_of_another_shape_is_refused() -> None:
    x, direction = torch.ones(2, 1, 8), torch.ones(8)
    assert turn(x, direction, 0.5).shape == x.shape
    for _ in range(2):
        caught = _caught(lambda: turn(x[0], direction, 0.5))
        assert "parameters of stir_train.baselines.fractional.turn" in caught


@checked
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


def test_a_dataclass_is_checked_when_it_is_made() -> None:
    made = Rollout("a", 0, (1,), (2,), (), (), "stop")
    wrong: Any = "0"
    assert "parameters of" in _caught(lambda: Rollout("a", wrong, (1,), (2,), (), (), "stop"))
    assert "parameters of" in _caught(lambda: dataclasses.replace(made, token_ids=wrong))


def test_a_function_that_is_called_often_is_checked_at_some_calls_for_ever() -> None:
    @checked
    def once(x: Float[Tensor, "N"]) -> int:
        return len(x)

    for _ in range(NUM_FIRST + 1):
        once(torch.ones(2))
    caught = 0
    for _ in range(10 * EVERY):
        try:
            once(torch.ones(2, 2))
        except TypeCheckError:
            caught += 1
    assert caught == 10


def test_what_was_imported_before_is_not_silently_left_out() -> None:
    with pytest.raises(RuntimeError, match=r"stir_train\.types"):
        type_checks.check_types_of("stir_train.types")
