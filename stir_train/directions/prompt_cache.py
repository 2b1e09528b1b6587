"""Keys and values of prompts, made once for all rollouts that begin with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from stir_train.types.rollout import Rollout

PROMPT_BATCHES = 4
"""Prompts are kept for at most so many times the tokens of a batch: without a graph, a token takes little memory."""


class PromptCache:
    """Caches of distinct prompts, equally long, without their last tokens."""

    def __init__(
        self, prompts: Sequence[tuple[int, ...]], prefill: Callable[[Int[Tensor, "B T"]], Any]
    ) -> None:
        """Feed the prompts, if they have more than one token.

        Args:
            prompts: Each is fed once, however often it is named.
            prefill: Runs the model on tokens, and returns transformers' cache of them.
        """
        distinct = dict.fromkeys(prompt[:-1] for prompt in prompts)
        self._row_of = {prompt: row for row, prompt in enumerate(distinct)}
        fed = torch.tensor(list(distinct), dtype=torch.long)
        self.num_fed = fed.numel()
        self._cache = prefill(fed) if self.num_fed else None

    def rows(self, prompts: Sequence[tuple[int, ...]]) -> Any:
        """A cache with a row for each of some of the prompts, for one pass to go on from; None if they are empty."""
        if self._cache is None:
            return None
        chosen = copy.copy(self._cache)
        # A layer's tensors are replaced, not written to, by choosing rows and by a pass.
        chosen.layers = [copy.copy(layer) for layer in self._cache.layers]
        chosen.batch_select_indices(torch.tensor([self._row_of[prompt[:-1]] for prompt in prompts]))
        return chosen


def batches_of_prompts(
    batches: Sequence[Sequence[int]], rollouts: Sequence[Rollout], max_batch_tokens: int
) -> Iterator[list[Sequence[int]]]:
    """Consecutive batches of rollouts whose prompts are equally long and few enough to be kept.

    Args:
        batches: Indices of rollouts; each batch's prompts are equally long.
        rollouts: All of them.
        max_batch_tokens: Tokens of a batch.

    Yields:
        One batch or more at a time.
    """
    some: list[Sequence[int]] = []
    prompts: set[tuple[int, ...]] = set()
    for batch in batches:
        more = {rollouts[index].prompt_token_ids for index in batch}
        length = len(rollouts[batch[0]].prompt_token_ids)
        is_alike = not some or len(rollouts[some[0][0]].prompt_token_ids) == length
        fits = len(prompts | more) * length <= PROMPT_BATCHES * max_batch_tokens
        if some and not (is_alike and fits):
            yield some
            some, prompts = [], set()
        some.append(batch)
        prompts |= more
    if some:
        yield some
