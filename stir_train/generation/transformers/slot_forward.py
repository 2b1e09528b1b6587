"""One forward pass over the rows of a slot cache: masks, and logits only where they are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stir_train.errors import ModelError
from stir_train.generation.transformers.slot_cache import SlotCache
from stir_train.models.load import LoadedModel

FULL, SLIDING = "full_attention", "sliding_attention"


class SlotForward:
    """Runs a model on slot-cache rows, whatever mixture of full and sliding attention it has."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Read the attention layout from the config.

        Raises:
            ModelError: If a block keeps another kind of state than keys and values.
        """
        self._model = loaded.model
        config = loaded.model.config.get_text_config()
        self._window: int | None = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ([SLIDING] if self._window else [FULL]))
        unsupported = sorted(kinds - {FULL, SLIDING})
        if unsupported:
            raise ModelError(
                f"{loaded.identity.architecture}: blocks of type {', '.join(unsupported)} keep a "
                "state that cannot be forked or refilled row by row; use a model whose blocks are "
                "all full or sliding attention"
            )
        self._kinds = kinds
        self._additive_mask = config._attn_implementation == "eager"  # noqa: SLF001
        # Right padding is after every real token, so plain causal attention needs no mask there.
        self._causal_only = kinds == {FULL} and not self._additive_mask
        self.width = loaded.identity.width
        self._head = loaded.model.get_output_embeddings()
        if self._head is None:
            raise ModelError(f"{loaded.identity.architecture} has no output embeddings")

    def __call__(
        self,
        cache: SlotCache,
        token_ids: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"],
        *,
        num_keys: int,
        columns: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B V"]:
        """Feed tokens to rows ``0..B-1`` of the cache.

        Args:
            cache: Written in place.
            token_ids: What to feed; columns past a row's end are padding.
            positions: Where each token goes, per row.
            num_keys: One more than the largest position.
            columns: The column of each row whose logits are wanted, for a pass that fills fresh rows
                after as many positions as they all hold, padded on the right; None is a decode pass, the last
                column.

        Returns:
            Logits for the token after each row's wanted column.
        """
        cache.begin(positions, num_keys)
        fresh = columns is not None and token_ids.shape[1] == num_keys
        with self._selecting(columns):
            output = self._model(
                input_ids=token_ids,
                attention_mask=self._mask(positions, num_keys, fresh=fresh),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    @contextmanager
    def _selecting(self, columns: Int[Tensor, "B"] | None) -> Iterator[None]:
        """Let only the wanted column of each row through to the output layer."""
        if columns is None:
            yield
            return
        handle = self._head.register_forward_pre_hook(_select_columns(columns))
        try:
            yield
        finally:
            handle.remove()

    def _mask(self, positions: Int[Tensor, "B T"], num_keys: int, *, fresh: bool) -> Any:
        if fresh and self._causal_only:
            return None
        keys = torch.arange(num_keys, device=positions.device)
        causal = keys <= positions[:, None, :, None]
        masks = {FULL: causal}
        if self._window is not None:
            masks[SLIDING] = causal & (keys > positions[:, None, :, None] - self._window)
        ready = {kind: self._as_needed(masks[kind]) for kind in self._kinds}
        return ready if len(ready) > 1 else next(iter(ready.values()))

    def _as_needed(self, mask: Bool[Tensor, "B 1 T K"]) -> Tensor:
        if not self._additive_mask:
            return mask
        dtype = self._model.dtype
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _select_columns(columns: Int[Tensor, "B"]) -> Any:
    """A pre-hook that keeps one position per row before the output layer."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = inputs[0]
        rows = torch.arange(len(columns), device=states.device)
        return (states[rows, columns.to(states.device)][:, None], *inputs[1:])

    return hook
