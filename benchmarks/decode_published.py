"""The published decoding loop beside the engine, at growing context; `decode.py` prints it."""

from __future__ import annotations

import time

import torch
from made_up import STEERING, VOCABULARY, random_basis, random_head, random_model, random_prompts

from stir_train.config.stages import ControlPointConfig
from stir_train.data.control_points import build_automaton
from stir_train.generation.backend import (
    ControlSpec,
    GenerationRequest,
    SamplingParams,
)
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.hooks import block_hooks
from stir_train.models.load import LoadedModel
from stir_train.steering.controller import BasisController
from stir_train.types.rollout import Prompt

NUM_CANDIDATES, PREVIEW_TOKENS, SEGMENT_TOKENS, NUM_SEGMENTS = 4, 4, 32, 2


class PublishedLoop:
    """Each segment: state, null preview, candidate previews, commit; a full prefill for each."""

    def __init__(self, loaded: LoadedModel, delta: torch.Tensor, block: int) -> None:
        self.loaded, self.delta, self.block = loaded, delta, block
        self.token_forwards = 0

    @torch.no_grad()
    def continuation(self, ids: torch.Tensor, num_tokens: int, *, rows: int, steer: bool):  # type: ignore[no-untyped-def]
        """Prefill ``rows`` copies of the prefix and decode greedily."""

        def edit(states: torch.Tensor) -> torch.Tensor | None:
            if states.shape[1] == 1 or not steer:
                return None
            states = states.clone()
            states[:, -1] += self.delta
            return states

        ids = ids.expand(rows, -1)
        cache, made = None, []
        with block_hooks(self.loaded.blocks, {self.block: edit}):
            for _ in range(num_tokens):
                output = self.loaded.model(
                    input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                self.token_forwards += ids.numel()
                cache = output.past_key_values
                ids = output.logits[:, -1].argmax(-1, keepdim=True)
                made.append(ids)
        return torch.cat(made, 1)

    def run(self, prompt: Prompt) -> None:
        """Answer with ``NUM_SEGMENTS`` steered segments."""
        ids = torch.tensor([prompt.token_ids], device=self.loaded.device)
        for _ in range(NUM_SEGMENTS):
            self.continuation(ids, 1, rows=1, steer=False)  # the state
            self.continuation(ids, PREVIEW_TOKENS, rows=1, steer=False)  # the null preview
            self.continuation(ids, PREVIEW_TOKENS, rows=NUM_CANDIDATES, steer=True)
            segment = self.continuation(ids, SEGMENT_TOKENS, rows=1, steer=True)
            ids = torch.cat([ids, segment], 1)


def against_published(device: str, quick: bool) -> None:
    """The published loop against preview and value mode, at growing context."""
    print(f"published loop: {NUM_SEGMENTS} segments of {SEGMENT_TOKENS} tokens, one problem")
    width, block = 256, 2
    contexts = [256, 512] if quick else [512, 2048, 8192]
    loaded = random_model(width, 4, 16384, device)
    automaton = build_automaton(
        loaded.tokenizer,
        ControlPointConfig(every_tokens=SEGMENT_TOKENS),
        vocab_size=VOCABULARY,
    )
    basis = random_basis(width, block, NUM_SEGMENTS)
    delta = basis.directions[0].to(loaded.device, loaded.model.dtype)
    for context in contexts:
        (prompt,) = random_prompts(1, context)
        loop = PublishedLoop(loaded, delta, block)
        start = time.perf_counter()
        loop.run(prompt)
        their_seconds = time.perf_counter() - start
        print(f"  context {context:5}  published  token-forwards {loop.token_forwards:8}")
        for mode in ("preview", "value"):
            settings = STEERING[mode]
            controller = BasisController(
                basis, settings, block=block, head=random_head(width, block), device=loaded.device
            )
            start = time.perf_counter()
            # One token more, so that the last segment's control point is fed and decided too.
            result = DecodeEngine(loaded, max_rows=8).generate(
                [GenerationRequest(prompt)],
                SamplingParams(SEGMENT_TOKENS * NUM_SEGMENTS + 1),
                seed=0,
                control=ControlSpec(automaton, 8),
                controller=controller,
            )
            seconds = time.perf_counter() - start
            forwards = result.cost.token_forwards
            print(
                f"                 {mode:9}  token-forwards {forwards:8}  "
                f"{loop.token_forwards / forwards:5.1f}x fewer   wall {their_seconds / seconds:5.1f}x "
                f"faster   decisions {len(result.decisions)}"
            )
