"""Time the matrix products that a model is made of, to know a data type's speed on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch.nn.functional import linear

NUM_ROWS, NUM_TIMES, INNER = 128, 5, 4
"""Rows that are decoded side by side, repetitions, and a feed-forward layer's inner by its outer width."""


def product_seconds(width: int, dtypes: Sequence[torch.dtype]) -> dict[torch.dtype, float]:
    """CPU seconds of a feed-forward layer's product of a model of some width, by data type.

    The best of several, in turns; CPU time, so that what else the machine does counts little. On one thread,
    since several spin while they wait for one that another program keeps from its core.
    """
    operands = {
        dtype: (
            torch.ones(NUM_ROWS, width, dtype=dtype),
            torch.ones(INNER * width, width, dtype=dtype),
        )
        for dtype in dtypes
    }
    best = dict.fromkeys(dtypes, float("inf"))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(NUM_TIMES):
            for dtype, (states, weight) in operands.items():
                begun = time.process_time()
                linear(states, weight)
                best[dtype] = min(best[dtype], time.process_time() - begun)
    finally:
        torch.set_num_threads(num_threads)
    return best
