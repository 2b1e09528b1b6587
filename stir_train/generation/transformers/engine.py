"""The decoding engine: KV-cached, slots refilled, capture and impulses in the same pass.

Nothing after the prompt is ever prefilled again. A chunk of requests alone fixes every batch, so
the same chunk gives the same bytes in any process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

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
from stir_train.models.packed_weights import packed_weights

PACKED_WEIGHTS = "packed_weights"
MIN_REQUESTS = 8
"""Fewer are decoded faster than a large model's weights are packed."""


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
            options: ``packed_weights``, true unless it is set: whether calls of several requests hold a second copy
                of the weights, in the order in which a CPU multiplies by them.

        Raises:
            ConfigError: If there are other options.
            ModelError: If the model's cache cannot be forked row by row.
        """
        self.check_installation(options or {})
        self._loaded = loaded
        self._max_rows = max_rows
        self._max_cache_tokens = max_cache_tokens
        self._forward = SlotForward(loaded)
        self._cache: SlotCache | None = None
        # Ranks that hold a model together have layers of their own, which are not `nn.Linear`.
        self._packs = bool((options or {}).get(PACKED_WEIGHTS, True)) and not loaded.is_sharded

    @staticmethod
    def check_installation(options: Mapping[str, JsonValue]) -> str:
        """It is part of this package, so that there is nothing to check but what is asked of it.

        Raises:
            ConfigError: If that is more than `packed_weights`, true or false.
        """
        others = sorted(options.keys() - {PACKED_WEIGHTS})
        if others:
            raise ConfigError(
                f"generation.options: {', '.join(others)}: not with generation.backend=transformers, which has "
                f"{PACKED_WEIGHTS} alone"
            )
        if not isinstance(options.get(PACKED_WEIGHTS, True), bool):
            raise ConfigError(
                f"generation.options.{PACKED_WEIGHTS}: {options[PACKED_WEIGHTS]!r} is neither true nor false"
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
                with run.hook.attached(self._loaded.blocks, edited), self._packed(requests):
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

    @contextmanager
    def _packed(self, requests: Sequence[GenerationRequest]) -> Iterator[None]:
        """Products by packed weights, made anew for every call: between two of them weights may be changed."""
        if not self._packs or len(requests) < MIN_REQUESTS:
            yield
            return
        with packed_weights(self._loaded.model):
            yield

    def _rows_within_budget(
        self, requests: Sequence[GenerationRequest], sampling: SamplingParams
    ) -> int:
        if self._max_cache_tokens is None:
            return self._max_rows
        longest = max((len(r.prompt.token_ids) for r in requests), default=0)
        fitting = self._max_cache_tokens // (longest + sampling.max_new_tokens)
        return max(1, min(self._max_rows, fitting))
