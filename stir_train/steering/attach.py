"""Steer a model inside the user's own ``model.generate``: greedy, sampling, streaming, batched.

Only modes that decide inside the pass can be attached; previews need the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stir_train.config.steering import SteeringConfig
from stir_train.data.control_points import ControlPointAutomaton, build_automaton
from stir_train.errors import StageError
from stir_train.generation.backend import ControlBatch, previewing
from stir_train.models.blocks import find_blocks
from stir_train.models.hooks import block_hooks
from stir_train.models.identity import identify_model
from stir_train.steering.artifacts import open_run_artifacts
from stir_train.steering.interface import SteeringController


@contextmanager
def steering(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run_dir: str | Path,
    *,
    settings: SteeringConfig | None = None,
) -> Iterator[SteeringController]:
    """Steer every ``generate`` inside the context with a finished run's control basis.

    Args:
        model: The model the run was made with, loaded by the user.
        tokenizer: Its tokenizer.
        run_dir: A run directory with finished basis, value and tune stages.
        settings: Instead of the run's frozen choice.

    Yields:
        The controller, whose ``decisions`` are the log.

    Raises:
        StageError: If the settings need previews.
        ArtifactError: If the run was made for another model.
    """
    path = Path(run_dir)
    artifacts = open_run_artifacts(path, identify_model(model, tokenizer))
    chosen = artifacts.choice() if settings is None else settings
    points = artifacts.control_points()
    controller = artifacts.controller(chosen, device=model.device)
    if previewing(controller) is not None:
        raise StageError(
            f"mode {chosen.mode!r} needs previews, which plain generate cannot make; pass "
            "settings=ValueSteering(depth=...), or use `stir-train generate`"
        )
    automaton = build_automaton(
        tokenizer, points, vocab_size=model.config.get_text_config().vocab_size
    )
    tracker = _Tracker(automaton.to(model.device), controller, points.max_points)
    handle = model.register_forward_pre_hook(tracker.before_forward, with_kwargs=True)
    try:
        below = {block: partial(tracker.on_block_below, block) for block in controller.reads[:-1]}
        with block_hooks(find_blocks(model), {**below, controller.block: tracker.on_block}):
            yield controller
    finally:
        handle.remove()


class _Tracker:
    """Follows the rows of one ``generate`` call from its forward passes alone."""

    def __init__(
        self, automaton: ControlPointAutomaton, controller: SteeringController, max_points: int
    ) -> None:
        self._automaton, self._controller = automaton, controller
        self._max_points = max_points
        self._state = torch.zeros(0, dtype=torch.long)
        self._points = torch.zeros(0, dtype=torch.long)
        self._fed = 0
        self._call = -1
        self._rows: Int[Tensor, "R"] | None = None
        self._below: dict[int, Float[Tensor, "R D"]] = {}

    def before_forward(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Advance every row's automaton by the token about to be fed."""
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if input_ids is None:
            raise StageError("steering follows token ids; pass input_ids, not inputs_embeds")
        cache = kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            starts = [self._automaton.start(row) for row in input_ids.tolist()]
            self._state = torch.tensor(starts, device=input_ids.device)
            self._points = torch.zeros_like(self._state)
            self._fed, self._rows = 0, None
            self._call += 1
            if cache is not None:
                cache.reorder_cache = _refuse_beams
            return
        if input_ids.shape != (len(self._state), 1):
            raise StageError(
                f"steering follows one token per row and pass, got {tuple(input_ids.shape)} for "
                f"{len(self._state)} rows; assisted decoding is not supported"
            )
        self._state, hits = self._automaton.step(self._state, input_ids[:, 0])
        self._fed += 1
        self._points += hits
        rows = (hits & (self._points <= self._max_points)).nonzero()[:, 0]
        self._rows = rows if len(rows) else None

    def on_block_below(self, block: int, states: Float[Tensor, "B T D"]) -> None:
        """Keep what the controller reads before its own block."""
        if self._rows is not None:
            self._below[block] = states[self._rows, 0].float()

    def on_block(self, states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"] | None:
        """Let the controller act on the rows at a control point."""
        if self._rows is None:
            return None
        rows = self._rows
        here = states[rows, 0].float()
        below = [self._below[block].to(here) for block in self._controller.reads[:-1]]
        batch = ControlBatch(
            prompt_ids=tuple(f"call-{self._call}-row-{row}" for row in rows.tolist()),
            samples=(0,) * len(rows),
            points=self._points[rows],
            token_indices=(self._fed - 1,) * len(rows),
        )
        impulses = self._controller.decide(torch.cat([*below, here], dim=1), batch)
        if not bool(impulses.fires.any()):
            return None
        edited = states.clone()
        fired = rows[impulses.fires]
        edited[fired, 0] += impulses.deltas[impulses.fires].to(states.dtype)
        return edited


def _refuse_beams(_beam_indices: Tensor) -> None:
    """Stands in for the cache's method that beam search calls, and nothing else does."""
    raise StageError("steering follows rows, which beam search reorders; use num_beams=1")
