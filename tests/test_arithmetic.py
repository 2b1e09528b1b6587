"""How fast a data type is on this machine, whatever else the machine does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stir_train.models import arithmetic


def test_products_are_timed_on_one_thread_of_as_many_as_there_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def linear(states: Tensor, weight: Tensor) -> Tensor:
        seen.append((torch.get_num_threads(), states.dtype))
        return torch.nn.functional.linear(states, weight)

    monkeypatch.setattr(arithmetic, "linear", linear)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seconds = arithmetic.product_seconds(8, (torch.float32, torch.bfloat16))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {(1, torch.float32), (1, torch.bfloat16)}
    assert set(seconds) == {torch.float32, torch.bfloat16}
