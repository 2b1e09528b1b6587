"""The decoding engine: KV-cached, slots refilled, capture and impulses in the same pass.

Nothing after the prompt is ever prefilled again. A chunk of requests alone fixes every batch, so
the same chunk gives the same bytes in any process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from pydantic import JsonValue

from stir_train.distributed.collective_forward import CollectiveForward
from stir_train.distributed.world import World
from stir_train.errors import ConfigError
from stir_train.generation.backend import (
    Ability,
    ControlSpec,
    GenerationCall,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
    TokenListener,
)
from stir_train.generation.checks import require_possible
from stir_train.generation.controller import Steering
from stir_train.generation.transformers.decoding import Decoding
from stir_train.generation.transformers.slot_cache import SlotCache
from stir_train.generation.transformers.slot_forward import SlotForward
from stir_train.models.load import LoadedModel


class DecodeEngine:
    """A `GenerationBackend` over a transformers model in this process; it can do everything."""

    name = "transformers"
    abilities = frozenset(Ability)

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_rows: int,
        max_cache_tokens: int | None = None,
        options: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Prepare to decode completions side by side.

        Args:
            loaded: The frozen model.
            max_rows: At most this many rows; halved for good where memory runs out.
            max_cache_tokens: Bound of rows times their longest possible length.
            options: There are none.

        Raises:
            ConfigError: If there are options.
            ModelError: If the model's cache cannot be forked row by row.
        """
        self.check_installation(options or {})
        self._loaded = loaded
        self._max_rows = max_rows
        self._max_cache_tokens = max_cache_tokens
        self._forward = SlotForward(loaded)
        self._cache: SlotCache | None = None

    @staticmethod
    def check_installation(options: Mapping[str, JsonValue]) -> str:
        """It is part of this package, so that there is nothing to check but that nothing is asked of it.

        Raises:
            ConfigError: If there are options.
        """
        if options:
            raise ConfigError(
                f"generation.options: {', '.join(sorted(options))}: not with generation.backend=transformers, "
                "which has none"
            )
        return ""

    @staticmethod
    def prepare_ranks(world: World, *, num_shards: int) -> None:
        """Nothing: ranks that hold a model together met when they loaded it."""

    @property
    def collective_forward(self) -> CollectiveForward | None:
        """Keeps ranks in step that can run the model only together."""
        return self._loaded.collective_forward

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingParams,
        *,
        seed: int,
        control: ControlSpec | None = None,
        controller: Steering | None = None,
        listener: TokenListener | None = None,
    ) -> GenerationResult:
        """Complete every request. Out of memory, it starts again with half the rows, if alone.

        Raises:
            DataError: If a prompt and its token budget do not fit the model's context.
            StageError: If a controller lacks what it needs to act at its place.
        """
        call = GenerationCall(requests, sampling, seed, control, controller, listener)
        require_possible(self, call, max_tokens=self._loaded.max_tokens)
        edited = frozenset(p.block for request in requests for p in request.planned)
        while True:
            max_rows = self._rows_within_budget(requests, sampling)
            if self._cache is None or self._cache.num_slots != max_rows:
                self._cache = SlotCache(max_rows)
            run = Decoding(self._loaded, self._forward, self._cache, call)
            try:
                with run.hook.attached(self._loaded.blocks, edited):
                    while run.admit() or run.slots.rows:
                        run.step()
                return run.result()
            except RuntimeError as error:
                # Ranks that hold a model together must not go on with different numbers of rows.
                whole = not self._loaded.is_sharded
                if self._max_rows == 1 or not whole or not should_reduce_batch_size(error):
                    raise
            del run
            self._cache = None
            clear_device_cache(garbage_collection=True)
            self._max_rows //= 2

    def close(self) -> None:
        """Let go of the cache, which the next call makes anew."""
        self._cache = None

    def _rows_within_budget(
        self, requests: Sequence[GenerationRequest], sampling: SamplingParams
    ) -> int:
        if self._max_cache_tokens is None:
            return self._max_rows
        longest = max((len(r.prompt.token_ids) for r in requests), default=0)
        fitting = self._max_cache_tokens // (longest + sampling.max_new_tokens)
        return max(1, min(self._max_rows, fitting))
