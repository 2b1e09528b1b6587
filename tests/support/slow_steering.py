"""The obvious way to steer: rebuild every prefix from nothing, with the impulses recorded so far."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stir_train.data.control_points import ControlPointAutomaton
from stir_train.generation.backend import ControlBatch, ImpulseBatch, SamplingParams
from stir_train.models.hooks import block_hooks
from stir_train.models.load import LoadedModel
from stir_train.steering.controller import BasisController
from stir_train.types.rollout import Prompt


@dataclass
class SlowSteering:
    """Greedy steered decoding of one prompt without a cache."""

    loaded: LoadedModel
    automaton: ControlPointAutomaton
    controller: BasisController
    sampling: SamplingParams
    max_points: int

    def run(self, prompt: Prompt) -> list[int]:
        """Return the completion; decisions are in the controller's log."""
        completion: list[int] = []
        impulses: dict[int, Tensor] = {}
        while len(completion) < self.sampling.max_new_tokens:
            points = self.automaton.find(completion)
            at_point = points and points[-1] == len(completion) - 1
            if at_point and len(points) <= self.max_points:
                self._decide(prompt, completion, impulses, len(points))
            logits, _ = self._forward(prompt, completion, impulses)
            completion.append(int(logits.argmax()))
            if completion[-1] in self.sampling.stop_token_ids:
                break
        return completion

    def _decide(
        self, prompt: Prompt, completion: list[int], impulses: dict[int, Tensor], point: int
    ) -> None:
        _, states = self._forward(prompt, completion, impulses)
        state = torch.cat([states[block] for block in self.controller.reads])
        batch = ControlBatch(
            (prompt.prompt_id,), (0,), torch.tensor([point]), (len(completion) - 1,)
        )
        if not self.controller.preview_tokens:
            chosen: ImpulseBatch = self.controller.decide(state[None], batch)
        else:
            proposal = self.controller.propose(state[None], batch)
            null = self._preview(prompt, completion, impulses, None)
            gains = [
                self._preview(prompt, completion, impulses, delta) - null if ok else -torch.inf
                for delta, ok in zip(proposal.deltas[0], proposal.valid[0].tolist(), strict=True)
            ]
            chosen = self.controller.commit(state[None], batch, torch.tensor([gains]))
        if bool(chosen.fires[0]):
            impulses[len(completion) - 1] = chosen.deltas[0]

    def _preview(
        self,
        prompt: Prompt,
        completion: list[int],
        impulses: dict[int, Tensor],
        delta: Tensor | None,
    ) -> float:
        tried = dict(impulses)
        if delta is not None:
            tried[len(completion) - 1] = delta
        text, logprobs = list(completion), []
        for _ in range(self.controller.preview_tokens):
            logits, _ = self._forward(prompt, text, tried)
            best, token = logits.log_softmax(-1).max(-1)
            logprobs.append(float(best))
            text.append(int(token))
            if int(token) in self.sampling.stop_token_ids:
                break
        return sum(logprobs) / len(logprobs)

    @torch.no_grad()
    def _forward(
        self, prompt: Prompt, completion: list[int], impulses: dict[int, Tensor]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Last logits, and the last states of the blocks read, before the last position's impulse."""
        start = len(prompt.token_ids)
        seen: dict[int, Tensor] = {}

        def read(block: int, states: Tensor) -> None:
            seen[block] = states[0, -1].clone()

        def edit(states: Tensor) -> Tensor:
            read(self.controller.block, states)
            states = states.clone()
            for index, delta in impulses.items():
                states[0, start + index] += delta
            return states

        hooks = {block: partial(read, block) for block in self.controller.reads}
        with block_hooks(self.loaded.blocks, {**hooks, self.controller.block: edit}):
            output = self.loaded.model(
                input_ids=torch.tensor([[*prompt.token_ids, *completion]]), use_cache=False
            )
        return output.logits[0, -1], seen
