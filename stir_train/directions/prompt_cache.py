"""Keys and values of prompts, made once for all rollouts that begin with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Prefill = Callable[[Int[Tensor, "R P"], Bool[Tensor, "R P"] | None, Int[Tensor, "R P"]], Any]
"""Runs the model on tokens, with a mask and positions, and returns transformers' cache of them."""


class PromptCache:
    """Caches of distinct prompts without their last tokens, padded on the left to the longest.

    Attributes:
        num_fed: Tokens, padding included.
    """

    def __init__(self, prompts: Sequence[tuple[int, ...]], prefill: Prefill) -> None:
        """Feed the prompts, unless all are of one token.

        Args:
            prompts: Each is fed once, however often it is named.
            prefill: Is given no mask where all are equally long.
        """
        distinct = list(dict.fromkeys(prompt[:-1] for prompt in prompts))
        self._row_of = {prompt: row for row, prompt in enumerate(distinct)}
        self._width = max(map(len, distinct))
        self.num_fed = self._width * len(distinct)
        self._cache = None
        if self._width:
            padded = [(0,) * (self._width - len(prompt)) + prompt for prompt in distinct]
            lengths = torch.tensor([[len(prompt)] for prompt in distinct])
            positions = torch.arange(self._width) - (self._width - lengths)
            self._cache = prefill(
                torch.tensor(padded), self._mask(distinct), positions.clamp(min=0)
            )

    def rows(self, prompts: Sequence[tuple[int, ...]]) -> Any:
        """A cache with a row for each of some of the prompts, for one pass to go on from; None if all are empty."""
        if self._cache is None:
            return None
        chosen = copy.copy(self._cache)
        # A layer's tensors are replaced, not written to, by choosing rows and by a pass.
        chosen.layers = [copy.copy(layer) for layer in self._cache.layers]
        chosen.batch_select_indices(torch.tensor([self._row_of[prompt[:-1]] for prompt in prompts]))
        return chosen

    def mask(self, prompts: Sequence[tuple[int, ...]], num_more: int) -> Bool[Tensor, "B K"] | None:
        """What of each row, and of so many tokens behind it, may be attended to; None if all."""
        begun = self._mask([prompt[:-1] for prompt in prompts])
        return None if begun is None else torch.nn.functional.pad(begun, (0, num_more), value=True)

    def _mask(self, begun: Sequence[tuple[int, ...]]) -> Bool[Tensor, "B P"] | None:
        lengths = torch.tensor([[len(one)] for one in begun])
        if int(lengths.min()) == self._width:
            return None
        return torch.arange(self._width) >= self._width - lengths
