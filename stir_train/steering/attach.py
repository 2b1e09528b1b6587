"""Steer a model inside the user's own ``model.generate``: greedy, sampling, streaming, batched.

Only controllers that decide inside the pass can be attached; previews need the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stir_train.config.steering import SteeringConfig
from stir_train.data.control_points import build_automaton
from stir_train.errors import StageError
from stir_train.generation.backend import ControlSpec
from stir_train.generation.control_hook import (
    ControlHook,
    PassPlan,
    PassRecord,
    Sites,
    asks_at_points,
    asks_at_prompt,
)
from stir_train.generation.controller import (
    ControlBatch,
    Steering,
    controllers_of,
    previewing,
    reads_uncertainty,
)
from stir_train.generation.decisions import records_of
from stir_train.generation.holds import Holds
from stir_train.models.blocks import find_blocks
from stir_train.steering.loaded import LoadedRun, load_run
from stir_train.types.places import PROMPT_END
from stir_train.types.steering import SteeringDecision


@contextmanager
def steering(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: str | Path | LoadedRun,
    *,
    settings: SteeringConfig | None = None,
) -> Iterator[list[SteeringDecision]]:
    """Steer every ``generate`` inside the context with a finished run's controller.

    Args:
        model: The model the run was made with, loaded by the user.
        tokenizer: Its tokenizer.
        run: What `load_run` opened or takes: a tuned run's directory, a folder of ``export --format run``, or
            the repository that ``push`` made.
        settings: Instead of the run's frozen choice.

    Yields:
        What is decided, as it is decided.

    Raises:
        StageError: If the settings need previews; inside the context, for a ``generate`` that cannot be
            followed (`attached`).
        ArtifactError: If there is no such run, it is damaged, or it was made for another model.
    """
    opened = run if isinstance(run, LoadedRun) else load_run(run)
    artifacts = opened.artifacts(model, tokenizer)
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
    with attached(model, controller, ControlSpec(automaton, points.max_points)) as decisions:
        yield decisions


@contextmanager
def attached(
    model: PreTrainedModel, controller: Steering, control: ControlSpec
) -> Iterator[list[SteeringDecision]]:
    """Steer every ``generate`` inside the context with one or several controllers.

    Rows are followed through the key-value cache, which every call must start empty: ``use_cache=False``
    and a cache that an earlier call has filled are refused, as are beams and assisted decoding.

    Args:
        model: Loaded by the user.
        controller: Who steers.
        control: Where control points are.

    Yields:
        What is decided, as it is decided; prompts are named by call and row.

    Raises:
        StageError: If a controller previews; inside the context, for a ``generate`` that cannot be followed.
    """
    if previewing(controller) is not None:
        raise StageError("plain generate cannot make previews; use the engine")
    if reads_uncertainty(controller):
        raise StageError("plain generate does not tell how uncertain steps were; use the engine")
    tracker = _Tracker(control, controller, model.device)
    before = model.register_forward_pre_hook(tracker.before_forward, with_kwargs=True)
    after = model.register_forward_hook(tracker.after_forward)
    try:
        with tracker.hook.attached(
            find_blocks(model), frozenset(c.block for c in controllers_of(controller))
        ):
            yield tracker.decisions
    finally:
        before.remove()
        after.remove()


class _Tracker:
    """Follows the rows of one ``generate`` call from its forward passes alone."""

    def __init__(self, control: ControlSpec, controller: Steering, device: torch.device) -> None:
        self._automaton = control.automaton.to(device)
        self._max_points = control.max_points
        self._controllers = controllers_of(controller)
        self.hook = ControlHook(self._controllers)
        self.decisions: list[SteeringDecision] = []
        self._state = torch.zeros(0, dtype=torch.long)
        self._points = torch.zeros(0, dtype=torch.long)
        self._holds = Holds(0, device)
        self._record = PassRecord()
        self._cache: Any = None
        self._num_cached, self._num_fed, self._call = 0, 0, -1

    def before_forward(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Find the rows that are at a prompt's end or a control point, and plan the pass."""
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if input_ids is None:
            raise StageError("steering follows token ids; pass input_ids, not inputs_embeds")
        cache = kwargs.get("past_key_values")
        if cache is None:
            raise StageError(
                "steering follows rows through the key-value cache, and this pass has none; call "
                "generate with use_cache=True"
            )
        if int(cache.get_seq_length()) == 0:
            plan = self._begin(input_ids, cache)
        else:
            plan = self._step(input_ids, cache)
        self._num_cached += input_ids.shape[1]
        self._record = self.hook.begin(plan)

    def after_forward(self, _module: nn.Module, _args: object, _output: object) -> None:
        """Note what was decided, and hold what is to be held."""
        for ask, decision in self._record.decided:
            self._holds.hold_decided(ask, decision, ask.sites.rows)
            self.decisions += [made for made, _ in records_of(ask, decision)]
        self._record = self.hook.begin(PassPlan())

    def _begin(self, input_ids: Int[Tensor, "B T"], cache: Any) -> PassPlan:
        """The pass that reads the prompts, which end in the last column."""
        starts = [self._automaton.start(row) for row in input_ids.tolist()]
        self._state = torch.tensor(starts, device=input_ids.device)
        self._points = torch.zeros_like(self._state)
        self._holds = Holds(len(input_ids), input_ids.device)
        self._cache, self._num_cached, self._num_fed = cache, 0, 0
        self._call += 1
        cache.reorder_cache = _refuse_beams
        rows = torch.arange(len(input_ids), device=input_ids.device)
        columns = torch.full_like(rows, input_ids.shape[1] - 1)
        sites = Sites(rows, columns, self._batch(rows, PROMPT_END))
        return PassPlan(asks=asks_at_prompt(self._controllers, sites, columns))

    def _step(self, input_ids: Int[Tensor, "B T"], cache: Any) -> PassPlan:
        """A pass that feeds one token of every row."""
        if cache is not self._cache or int(cache.get_seq_length()) != self._num_cached:
            raise StageError(
                "steering follows a completion from its prompt on, and this cache already holds "
                f"{int(cache.get_seq_length())} tokens that it has not seen; pass the whole "
                "conversation without past_key_values"
            )
        if input_ids.shape != (len(self._state), 1):
            raise StageError(
                f"steering follows one token per row and pass, got {tuple(input_ids.shape)} for "
                f"{len(self._state)} rows; assisted decoding and a chat continued on its cache are not "
                "supported: pass the whole conversation without past_key_values"
            )
        self._state, hits = self._automaton.step(self._state, input_ids[:, 0])
        self._num_fed += 1
        self._points += hits
        self._holds.end_segments(hits.nonzero()[:, 0])
        edits = self._holds.edits(len(self._state))
        rows = (hits & (self._points <= self._max_points)).nonzero()[:, 0]
        if not len(rows):
            return PassPlan(edits=edits)
        columns = torch.zeros_like(rows)
        sites = Sites(rows, columns, self._batch(rows, self._num_fed - 1))
        return PassPlan(asks=asks_at_points(self._controllers, sites, columns), edits=edits)

    def _batch(self, rows: Int[Tensor, "R"], token_index: int) -> ControlBatch:
        return ControlBatch(
            prompt_ids=tuple(f"call-{self._call}-row-{row}" for row in rows.tolist()),
            samples=(0,) * len(rows),
            points=self._points[rows],
            token_indices=(token_index,) * len(rows),
        )


def _refuse_beams(_beam_indices: Tensor) -> None:
    """Stands in for the cache's method that beam search calls, and nothing else does."""
    raise StageError("steering follows rows, which beam search reorders; use num_beams=1")
