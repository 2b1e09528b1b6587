"""Activations of finished completions, read in teacher-forced passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Rollout

BATCH = 32


@dataclass(frozen=True)
class Reading:
    """One batch of completions.

    Attributes:
        rollouts: The completions.
        response: ``Bool[B T]``, positions of completion tokens.
        last: ``Int[B]``, position of the last one.
        found: What each module gave (or was given), ``Float[B T D]``.
        logits: ``Float[B T V]``.
    """

    rollouts: Sequence[Rollout]
    response: Bool[Tensor, "B T"]
    last: Tensor
    found: Mapping[str, Tensor]
    logits: Tensor

    def means(self, name: str) -> Float[Tensor, "B D"]:
        """Mean of a reading over each row's completion tokens, in float32 on the CPU."""
        weights = self.response.to(self.found[name].device).float()
        total = (self.found[name].float() * weights[..., None]).sum(1)
        return (total / weights.sum(1, keepdim=True)).cpu()

    def lasts(self, name: str) -> Float[Tensor, "B D"]:
        """At the last completion token."""
        states = self.found[name]
        rows = torch.arange(len(self.last), device=states.device)
        return states[rows, self.last.to(states.device)].float().cpu()


@torch.no_grad()
def read(
    loaded: LoadedModel,
    rollouts: Sequence[Rollout],
    outputs: Mapping[str, nn.Module],
    inputs: Mapping[str, nn.Module] | None = None,
) -> Iterator[Reading]:
    """Feed completions with their prompts, in right-padded batches.

    Args:
        loaded: The frozen model.
        rollouts: Completions without impulses.
        outputs: Modules whose output is kept, by the name it is kept under.
        inputs: Modules whose input is.
    """
    found: dict[str, Tensor] = {}

    def keep_output(name: str) -> Any:
        def hook(_module: nn.Module, _given: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def keep_input(name: str) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...]) -> None:
            found[name] = given[0]

        return hook

    with ExitStack() as hooks:
        for name, module in outputs.items():
            hooks.callback(module.register_forward_hook(keep_output(name)).remove)
        for name, module in (inputs or {}).items():
            hooks.callback(module.register_forward_pre_hook(keep_input(name)).remove)
        for first in range(0, len(rollouts), BATCH):
            some = rollouts[first : first + BATCH]
            token_ids, mask, response = _padded(some)
            logits = loaded.model(
                input_ids=token_ids.to(loaded.device),
                attention_mask=mask.to(loaded.device),
                use_cache=False,
            ).logits
            yield Reading(some, response, mask.sum(1) - 1, dict(found), logits)


def _padded(rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(r.prompt_token_ids) + len(r.token_ids) for r in rollouts)
    token_ids = torch.zeros((len(rollouts), width), dtype=torch.long)
    mask = torch.zeros_like(token_ids)
    response = torch.zeros_like(token_ids, dtype=torch.bool)
    for row, rollout in enumerate(rollouts):
        ids = [*rollout.prompt_token_ids, *rollout.token_ids]
        token_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        response[row, len(rollout.prompt_token_ids) : len(ids)] = True
    return token_ids, mask, response


def block_outputs(loaded: LoadedModel, blocks: Sequence[int]) -> dict[str, nn.Module]:
    """The blocks by name, for ``outputs``: what they give is ``h[block]``."""
    return {f"block {block}": loaded.blocks[block] for block in blocks}


def attention_output(block: nn.Module) -> nn.Linear:
    """A block's projection from its heads to the residual stream.

    Raises:
        LookupError: If the block has no linear layer of a known name there.
    """
    return _linear(block, ("o_proj", "out_proj", "dense", "c_proj"), ("attn", "attention"))


def feed_forward_output(block: nn.Module) -> nn.Linear:
    """A block's projection from its neurons to the residual stream.

    Raises:
        LookupError: If the block has no linear layer of a known name there.
    """
    return _linear(block, ("down_proj", "fc2", "w2", "c_proj", "dense_4h_to_h"), ("mlp", "feed"))


def _linear(block: nn.Module, names: tuple[str, ...], parents: tuple[str, ...]) -> nn.Linear:
    for path, module in block.named_modules():
        inside = any(parent in path for parent in parents)
        if inside and path.rpartition(".")[2] in names and isinstance(module, nn.Linear):
            return module
    raise LookupError(f"{type(block).__name__} has no linear layer {' or '.join(names)}")
