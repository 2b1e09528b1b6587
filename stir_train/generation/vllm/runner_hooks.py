"""Our part in the passes of vLLM's model runner: who its rows are, and hooks on its decoder blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stir_train.errors import ModelError
from stir_train.generation.backend import ControlSpec, GenerationCost
from stir_train.generation.control_hook import ControlHook, edited_states
from stir_train.generation.controller import Controller
from stir_train.generation.vllm.calls import REQUEST
from stir_train.generation.vllm.passes import Fed, plan_pass, record_pass
from stir_train.generation.vllm.track import Track
from stir_train.generation.vllm.versions import OF_BATCH, OF_RUNNER, require_internals

FORWARD = "_model_forward"
"""The runner's method around which we go: when it is called, the pass is laid out and not yet run."""


def require_runner(runner: Any) -> None:
    """Make sure that a started runner has what we read of it.

    Raises:
        StageError: If it lacks something.
    """
    require_internals({"GPUModelRunner": (runner, (FORWARD, *OF_RUNNER))})
    require_internals(
        {
            "InputBatch": (runner.input_batch, OF_BATCH),
            "query_start_loc": (runner.query_start_loc, ("np",)),
        }
    )


@dataclass
class SteeredRunner:
    """vLLM's model runner during one call.

    Attributes:
        runner: vLLM's own.
        blocks: Its model's decoder blocks.
        tracks: The call's completions.
        control: Where control points are.
        controllers: Who steers.
        cost: Of the passes so far.
    """

    runner: Any
    blocks: nn.ModuleList
    tracks: Sequence[Track]
    control: ControlSpec | None
    controllers: Sequence[Controller]
    cost: GenerationCost

    def __post_init__(self) -> None:
        """Make the hook that captures and asks."""
        self.capture_blocks = () if self.control is None else self.control.capture_blocks
        self.hook = ControlHook(self.controllers, self.capture_blocks)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Take part in the passes inside the context."""
        read = {block for controller in self.controllers for block in controller.reads}
        planned = {span.block for track in self.tracks for span in track.spans}
        plain = getattr(self.runner, FORWARD)
        with ExitStack() as stack:
            for block in sorted({*self.capture_blocks, *read, *planned}):
                handle = self.blocks[block].register_forward_hook(block_hook(self.hook, block))
                stack.callback(handle.remove)
            setattr(self.runner, FORWARD, self._around(plain))
            stack.callback(setattr, self.runner, FORWARD, plain)
            yield

    def _around(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def forward(input_ids: Tensor, positions: Tensor, **others: Any) -> Any:
            token_ids: list[int] = input_ids[: pass_starts(self.runner)[-1]].tolist()
            fed = fed_of_pass(self.runner, token_ids, self._track_of)
            planned = plan_pass(fed, self.control, self.controllers, input_ids.device)
            self.cost.forward_passes += 1
            self.cost.prefill_passes += any(one.first < one.track.num_context for one in fed)
            self.cost.token_forwards += len(token_ids)
            with self.hook.carrying_out(planned.plan) as record:
                output = plain(input_ids=input_ids, positions=positions, **others)
            record_pass(planned, record, self.capture_blocks, token_ids)
            return output

        return forward

    def _track_of(self, request_id: str) -> Track:
        return self.tracks[self.runner.requests[request_id].sampling_params.extra_args[REQUEST]]


def fed_of_pass(
    runner: Any, token_ids: Sequence[int], track_of: Callable[[str], Track | None]
) -> list[Fed]:
    """Whose the columns of the coming pass are.

    Args:
        runner: vLLM's own, the pass laid out.
        token_ids: Of its columns, without padding.
        track_of: The completion that a request of vLLM's makes, by name; None leaves it alone.
    """
    batch = runner.input_batch
    starts = pass_starts(runner)
    positions = batch.num_computed_tokens_cpu[: batch.num_reqs].tolist()
    fed = []
    for row, request_id in enumerate(batch.req_ids[: batch.num_reqs]):
        track = track_of(request_id)
        if track is not None:
            tokens = token_ids[starts[row] : starts[row + 1]]
            fed.append(Fed(track, starts[row], positions[row], tokens))
    return fed


def pass_starts(runner: Any) -> list[int]:
    """The column at which each request of the coming pass begins, and the number of columns last."""
    starts: list[int] = runner.query_start_loc.np[: runner.input_batch.num_reqs + 1].tolist()
    return starts


def block_hook(control: ControlHook, block: int) -> Callable[[nn.Module, Any, Any], None]:
    """A forward hook that carries out the plan of the current pass at a decoder block of vLLM's."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not control.acts_at(block):
            return
        hidden, residual = _parts(output, block)
        states = (hidden if residual is None else hidden + residual)[None]
        edits = control.edits_at(block, states)
        edited = edited_states(states, edits)
        if edited is None:
            return
        columns = torch.cat([edit.columns for edit in edits]).unique()
        if residual is None:
            hidden[columns] = edited[0, columns]
        else:
            # The next block adds the two up: what is left of one is then exactly the state.
            hidden[columns] = 0
            residual[columns] = edited[0, columns]

    return hook


def _parts(output: Any, block: int) -> tuple[Tensor, Tensor | None]:
    """A block's output and what it is still to be added to, which together are the state.

    Raises:
        ModelError: If the block returns something else.
    """
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, tuple) and len(output) == 2:
        hidden, residual = output
        if isinstance(hidden, Tensor) and (residual is None or isinstance(residual, Tensor)):
            return hidden, residual
    raise ModelError(
        f"generation.backend=vllm: block {block} of this model returns {type(output).__name__}, not its "
        "output and residual; use generation.backend=transformers for this model"
    )
