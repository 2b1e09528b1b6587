"""Ways to change a frozen model for a while: a vector, a bias on its logits, other weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stir_train.models.hooks import block_hooks
from stir_train.models.load import LoadedModel

FORBIDDEN = -1e9


@contextmanager
def adding(
    loaded: LoadedModel, block: int, vector: Float[Tensor, "D"], *, to_prompt: bool
) -> Iterator[None]:
    """Add a vector after a block: at every decoded token, and at the prompt's too if asked."""

    def edit(states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"] | None:
        if states.shape[1] > 1 and not to_prompt:
            return None  # the pass that reads the prompt
        return states + vector.to(states)

    with block_hooks(loaded.blocks, {block: edit}):
        yield


@contextmanager
def biased(loaded: LoadedModel, bias: Float[Tensor, "V"]) -> Iterator[None]:
    """Add a bias to the logits of every token."""

    def hook(_module: nn.Module, _inputs: Any, logits: Tensor) -> Tensor:
        return logits + bias.to(logits)

    head = loaded.model.get_output_embeddings()
    assert head is not None, "the engine has asked for it"
    handle = head.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def edited(weights: Mapping[nn.Linear, Tensor]) -> AbstractContextManager[None]:
    """Give linear layers other weights; the old ones are put back bit for bit."""
    return replaced((layer.weight, weight) for layer, weight in weights.items())


@contextmanager
@torch.no_grad()
def replaced(values: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give parameters other values, made one at a time; the old ones are put back bit for bit."""
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for parameter, value in values:
            kept.append((parameter, parameter.detach().clone()))
            parameter.copy_(value)
        yield
    finally:
        for parameter, value in kept:
            parameter.copy_(value)


def token_ids_of_words(loaded: LoadedModel, words: frozenset[str]) -> list[int]:
    """Vocabulary items that are one of the words, whatever their case, space and punctuation."""
    found = []
    for token, token_id in loaded.tokenizer.get_vocab().items():
        text = loaded.tokenizer.convert_tokens_to_string([token])
        if text.strip(" \n\t.,:;!?'\"").lower() in words:
            found.append(token_id)
    return sorted(found)


def forbidding(token_ids: list[int], vocab_size: int) -> Float[Tensor, "V"]:
    """A bias that leaves no probability to some tokens."""
    bias = torch.zeros(vocab_size)
    bias[torch.tensor(token_ids, dtype=torch.long)] = FORBIDDEN
    return bias
