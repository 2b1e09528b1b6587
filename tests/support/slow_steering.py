"""The obvious way to steer: rebuild every prefix from nothing, with everything recorded so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stir_train.data.control_points import ControlPointAutomaton
from stir_train.generation.backend import SamplingParams
from stir_train.generation.control_hook import Ask, Sites
from stir_train.generation.controller import ControlBatch, Controller, Decision, previewing
from stir_train.generation.decisions import records_of
from stir_train.models.hooks import block_hooks
from stir_train.models.load import LoadedModel
from stir_train.types.places import HELD_PLACES
from stir_train.types.rollout import Prompt
from stir_train.types.steering import SteeringDecision

Cells = dict[tuple[int, int], list[Tensor]]
"""What is added, by block and position."""


@dataclass
class SlowSteering:
    """Greedy steered decoding of one prompt without a cache."""

    loaded: LoadedModel
    automaton: ControlPointAutomaton
    controllers: Sequence[Controller]
    sampling: SamplingParams
    max_points: int
    decisions: list[SteeringDecision] = field(default_factory=list)

    def run(self, prompt: Prompt) -> list[int]:
        """Return the completion; the decisions are kept."""
        completion: list[int] = []
        cells: Cells = {}
        held: dict[int, Tensor] = {}
        start = len(prompt.token_ids)
        while len(completion) < self.sampling.max_new_tokens:
            at = start + len(completion) - 1
            points = self.automaton.find(completion)
            at_point = bool(points) and points[-1] == len(completion) - 1
            self._go_on(held, cells, at, at_point=at_point)
            # One after the other, from below: what lies below is there when a block is read.
            for i in sorted(range(len(self.controllers)), key=lambda i: self.controllers[i].block):
                asked = self.controllers[i]
                point = self._point(asked, completion, len(points) if at_point else 0)
                if point is None:
                    continue
                chosen = self._decide(prompt, completion, cells, (asked, point))
                if chosen is None or not bool(chosen.fires[0]):
                    continue
                start_at = 0 if asked.place == "every_token" else at
                for position in range(start_at, at + 1):
                    cells.setdefault((asked.block, position), []).append(chosen.deltas[0])
                held |= {i: chosen.deltas[0]} if asked.place in HELD_PLACES else {}
            logits, _ = self._forward(prompt, completion, cells)
            completion.append(int(logits.argmax()))
            if completion[-1] in self.sampling.stop_token_ids:
                break
        return completion

    def _go_on(self, held: dict[int, Tensor], cells: Cells, at: int, *, at_point: bool) -> None:
        """Add what is still held at the position that is fed next."""
        for i, controller in enumerate(self.controllers):
            if controller.place == "segment" and at_point:
                held.pop(i, None)
            if i in held:
                cells.setdefault((controller.block, at), []).append(held[i])

    def _point(self, asked: Controller, completion: list[int], reached: int) -> int | None:
        """The control point at which a controller is asked now, if it is."""
        if asked.place in ("prompt_end", "everywhere", "every_token"):
            return None if completion else 0
        return reached if 0 < reached <= self.max_points else None

    def _decide(
        self, prompt: Prompt, completion: list[int], cells: Cells, asked: tuple[Controller, int]
    ) -> Decision | None:
        controller, point = asked
        at = len(prompt.token_ids) + len(completion) - 1
        # What this controller's own block adds here is not shown to it.
        before = {k: v for k, v in cells.items() if k != (controller.block, at)}
        _, states = self._forward(prompt, completion, before)
        state = torch.cat([states[block] for block in controller.reads])[None]
        batch = ControlBatch(
            (prompt.prompt_id,), (0,), torch.tensor([point]), (len(completion) - 1,)
        )
        proposer = previewing(controller)
        if proposer is None:
            chosen = controller.decide(state, batch)
        else:
            proposal = proposer.propose(state, batch)
            place, tokens = (controller.block, at), proposer.preview_tokens
            null = self._preview(prompt, completion, cells, tokens)
            gains = [
                self._preview(prompt, completion, {**cells, place: [delta]}, tokens) - null
                if ok
                else -torch.inf
                for delta, ok in zip(proposal.previews[0], proposal.valid[0].tolist(), strict=True)
            ]
            chosen = proposer.commit(proposal, torch.tensor([gains]))
        if chosen is not None:
            here = torch.tensor([0])
            ask = Ask(controller, Sites(here, here, batch), here, here)
            self.decisions += [made for made, _ in records_of(ask, chosen)]
        return chosen

    def _preview(
        self, prompt: Prompt, completion: list[int], cells: Cells, num_tokens: int
    ) -> float:
        text, logprobs = list(completion), []
        for _ in range(num_tokens):
            logits, _ = self._forward(prompt, text, cells)
            best, token = logits.log_softmax(-1).max(-1)
            logprobs.append(float(best))
            text.append(int(token))
            if int(token) in self.sampling.stop_token_ids:
                break
        return sum(logprobs) / len(logprobs)

    @torch.no_grad()
    def _forward(
        self, prompt: Prompt, completion: list[int], cells: Cells
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Last logits, and the last position's states before anything is added there."""
        seen: dict[int, Tensor] = {}

        def edit(block: int, states: Tensor) -> Tensor:
            seen[block] = states[0, -1].clone()
            states = states.clone()
            for (where, position), deltas in cells.items():
                if where == block:
                    for delta in deltas:
                        states[0, position] += delta
            return states

        hooks = {
            block: lambda states, block=block: edit(block, states)
            for block in range(len(self.loaded.blocks))
        }
        with block_hooks(self.loaded.blocks, hooks):
            output = self.loaded.model(
                input_ids=torch.tensor([[*prompt.token_ids, *completion]]), use_cache=False
            )
        return output.logits[0, -1], seen
