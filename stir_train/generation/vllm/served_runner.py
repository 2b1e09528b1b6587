"""Our part in the passes of a server: requests come and go, each steered at a strength of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from stir_train.generation.backend import GenerationRequest
from stir_train.generation.control_hook import ControlHook, PassPlan, PassRecord
from stir_train.generation.vllm.passes import Fed, PlannedPass, plan_pass, record_pass
from stir_train.generation.vllm.runner_hooks import FORWARD, block_hook, fed_of_pass, pass_starts
from stir_train.generation.vllm.served import ServedSteering, strength_of
from stir_train.generation.vllm.track import Track
from stir_train.types.rollout import Prompt

UPDATE = "_update_states"
"""The runner's method that is told which requests are over, also when there is no pass."""


class ServedRunner:
    """vLLM's model runner, steered for as long as its process lives."""

    def __init__(
        self,
        runner: Any,
        blocks: nn.ModuleList,
        steering: ServedSteering,
        say: Callable[[str], None],
    ) -> None:
        """Take part in its passes from now on.

        Args:
            runner: vLLM's own.
            blocks: Its model's decoder blocks.
            steering: Who steers.
            say: Called with a line about each request that was steered, once it is over.
        """
        self._runner, self._steering, self._say = runner, steering, say
        self._tracks: dict[str, Track] = {}
        self._strengths: dict[str, float] = {}
        controllers = steering.controllers(1.0)
        self._hook = ControlHook(controllers)
        for block in sorted({block for controller in controllers for block in controller.reads}):
            blocks[block].register_forward_hook(block_hook(self._hook, block))
        setattr(runner, FORWARD, self._around_forward(getattr(runner, FORWARD)))
        setattr(runner, UPDATE, self._around_update(getattr(runner, UPDATE)))

    def _around_forward(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def forward(input_ids: Tensor, positions: Tensor, **others: Any) -> Any:
            token_ids: list[int] = input_ids[: pass_starts(self._runner)[-1]].tolist()
            planned = self._plan(fed_of_pass(self._runner, token_ids, self._track_of))
            together = PassPlan(
                asks=tuple(ask for one in planned for ask in one.plan.asks),
                edits=tuple(edit for one in planned for edit in one.plan.edits),
            )
            with self._hook.carrying_out(together) as record:
                output = plain(input_ids=input_ids, positions=positions, **others)
            for one in planned:
                own = {id(ask) for ask in one.plan.asks}
                decided = [(ask, made) for ask, made in record.decided if id(ask) in own]
                record_pass(one, PassRecord(decided=decided), (), token_ids)
            return output

        return forward

    def _around_update(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def update(scheduler_output: Any) -> Any:
            for request_id in scheduler_output.finished_req_ids:
                if request_id in self._tracks:
                    self._say(self._described(request_id))
                    del self._tracks[request_id], self._strengths[request_id]
            return plain(scheduler_output)

        return update

    def _plan(self, fed: Sequence[Fed]) -> list[PlannedPass]:
        """A plan for each strength in the pass."""
        by_strength: dict[float, list[Fed]] = {}
        for one in fed:
            strength = self._strengths[one.track.request.prompt.prompt_id]
            by_strength.setdefault(strength, []).append(one)
        control, device = self._steering.control, self._runner.device
        return [
            plan_pass(group, control, self._steering.controllers(strength), device)
            for strength, group in by_strength.items()
        ]

    def _track_of(self, request_id: str) -> Track | None:
        """The record of a request, begun when it is first fed; None if nobody steers it."""
        if request_id in self._tracks:
            return self._tracks[request_id]
        state = self._runner.requests[request_id]
        strength = strength_of(
            state.sampling_params.extra_args, has_adapter=state.lora_request is not None
        )
        if not strength:
            return None
        prompt = Prompt(request_id, "", "", tuple(state.prompt_token_ids), "")
        automaton = self._steering.control.automaton
        track = Track(len(self._tracks), GenerationRequest(prompt), automaton)
        self._tracks[request_id], self._strengths[request_id] = track, strength
        return track

    def _described(self, request_id: str) -> str:
        """What was done to a request."""
        track = self._tracks[request_id]
        at = Counter(f"{impulse.place} in block {impulse.block}" for impulse in track.impulses)
        where = ", ".join(f"{count} at {place}" for place, count in sorted(at.items()))
        return (
            f"request {request_id}: strength {self._strengths[request_id]:g}, "
            f"{len(track.control_points)} control points, {len(track.decisions)} decisions, "
            f"{len(track.impulses)} interventions{f' ({where})' if where else ''}"
        )
