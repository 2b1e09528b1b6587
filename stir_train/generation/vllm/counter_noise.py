"""Sampling by our own rule and noise, as a logits processor of vLLM.

The noise of a token depends on the seed, the prompt, the sample and the token's place alone, so a draw is
the same in any batch, after a preemption, and in our own engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from stir_train.generation.noise import uniforms
from stir_train.generation.sampling import next_tokens
from stir_train.generation.vllm.calls import REQUEST, SamplingCall


@dataclass
class _Row:
    """A row of vLLM's batch: the request's number, and vLLM's own growing list of what it sampled."""

    index: int
    sampled: list[int]
    seen: Bool[Tensor, "V"] | None = None
    num_seen: int = 0


class CounterNoise(LogitsProcessor):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Chooses every token, and leaves it as the only finite logit, which greedy decoding then takes."""

    def __init__(
        self,
        vllm_config: Any,  # noqa: ARG002 - vLLM's interface
        device: torch.device,
        is_pin_memory: bool,  # noqa: ARG002
    ) -> None:
        self.device = device
        self.call: SamplingCall | None = None
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """It decides what the largest logit is."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows of vLLM's batch: removed, added, moved, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, sampled in batch_update.added:
            self._rows[row] = _Row(params.extra_args[REQUEST], sampled)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = replaced

    def apply(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Choose a token for every row of the batch."""
        call = self.call
        if call is None or not self._rows:
            return logits
        numbers = sorted(self._rows)
        rows = [self._rows[number] for number in numbers]
        places = [len(call.requests[r.index].prefix_token_ids) + len(r.sampled) for r in rows]
        draws = None
        if call.sampling.temperature > 0:
            keys = torch.tensor([call.noise_keys[r.index] for r in rows], device=logits.device)
            draws = uniforms(keys, torch.tensor(places, device=logits.device))
        at = torch.tensor(numbers, device=logits.device)
        tokens, logprobs = next_tokens(
            logits[at], call.sampling, draws, self._seen(call, rows, logits)
        )
        logits[at] = torch.full_like(logits[at], -torch.inf).scatter(-1, tokens[:, None], 0.0)
        for row, place, token, logprob in zip(
            rows, places, tokens.tolist(), logprobs.tolist(), strict=True
        ):
            call.logprobs[row.index][place] = logprob
            if call.listener is not None:
                call.listener(row.index, token)
        return logits

    def _seen(
        self, call: SamplingCall, rows: list[_Row], logits: Float[Tensor, "B V"]
    ) -> Bool[Tensor, "R V"] | None:
        """Which tokens each row holds already, where they are penalised."""
        if call.sampling.repetition_penalty == 1:
            return None
        marked = []
        for row in rows:
            if row.seen is None:
                request = call.requests[row.index]
                row.seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
                row.seen[[*request.prompt.token_ids, *request.prefix_token_ids]] = True
            row.seen[row.sampled[row.num_seen :]] = True
            row.num_seen = len(row.sampled)
            marked.append(row.seen)
        return torch.stack(marked)
