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


@dataclass(frozen=True)
class _ReadAhead:
    """What one pass said of every prefix of what it was fed.

    Attributes:
        prompt: What was fed first.
        fed: The tokens after the prompt.
        num_added: How often something was added in it; a decode only ever adds more.
        most_likely: The most likely token after each token fed.
    """

    prompt: Prompt
    fed: list[int]
    num_added: int
    most_likely: list[int]

    def covers(self, prompt: Prompt, completion: list[int], num_added: int) -> bool:
        """Whether the same was added, and to the same tokens."""
        same = (self.prompt, self.num_added) == (prompt, num_added)
        return same and self.fed[: len(completion)] == completion


@dataclass
class SlowSteering:
    """Greedy steered decoding of one prompt without a cache."""

    loaded: LoadedModel
    automaton: ControlPointAutomaton
    controllers: Sequence[Controller]
    sampling: SamplingParams
    max_points: int
    decisions: list[SteeringDecision] = field(default_factory=list)
    _read: _ReadAhead | None = None

    def run(self, prompt: Prompt, draft: Sequence[int] = ()) -> list[int]:
        """Return the completion; the decisions are kept.

        Args:
            prompt: What is completed.
            draft: How the completion may go on. A pass reads on along it, so that one pass says of many
                prefixes what comes next; where it is wrong, what it says is not used.
        """
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
            # While something is held, every token changes what a pass would say of the next.
            ahead = () if held else draft
            completion.append(self._next(prompt, completion, ahead, cells))
            if completion[-1] in self.sampling.stop_token_ids:
                break
        return completion

    def _next(
        self, prompt: Prompt, completion: list[int], draft: Sequence[int], cells: Cells
    ) -> int:
        """The most likely token after a prefix, with what is added so far."""
        read = self._read
        num_added = sum(map(len, cells.values()))
        if read is None or not read.covers(prompt, completion, num_added):
            follows = list(draft[: len(completion)]) == completion
            fed = [*completion, *(draft[len(completion) :] if follows else ())]
            logits, _ = self._forward(prompt, [fed], [cells])
            read = _ReadAhead(prompt, fed, num_added, logits[0].argmax(-1).tolist())
            self._read = read
        return read.most_likely[len(prompt.token_ids) + len(completion) - 1]

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
        _, states = self._forward(prompt, [completion], [before])
        state = torch.cat([states[block] for block in controller.reads], dim=-1)
        batch = ControlBatch(
            (prompt.prompt_id,), (0,), torch.tensor([point]), (len(completion) - 1,)
        )
        proposer = previewing(controller)
        if proposer is None:
            chosen = controller.decide(state, batch)
        else:
            proposal = proposer.propose(state, batch)
            place, tokens = (controller.block, at), proposer.preview_tokens
            valid = proposal.valid[0].tolist()
            shown = [delta for delta, ok in zip(proposal.previews[0], valid, strict=True) if ok]
            rows = [cells, *({**cells, place: [delta]} for delta in shown)]
            null, *others = self._confidences(prompt, completion, rows, tokens)
            gained = iter(others)
            gains = [next(gained) - null if ok else -torch.inf for ok in valid]
            chosen = proposer.commit(proposal, torch.tensor([gains]))
        if chosen is not None:
            here = torch.tensor([0])
            ask = Ask(controller, Sites(here, here, batch), here, here)
            self.decisions += [made for made, _ in records_of(ask, chosen)]
        return chosen

    def _confidences(
        self, prompt: Prompt, completion: list[int], rows: list[Cells], num_tokens: int
    ) -> list[float]:
        """Mean log-probability of the next few greedy tokens, under each of several additions."""
        texts: list[list[int]] = [list(completion) for _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        stop = self.sampling.stop_token_ids
        for _ in range(num_tokens):
            logits, _ = self._forward(prompt, texts, rows)
            best, tokens = logits[:, -1].log_softmax(-1).max(-1)
            for text, found, value, token in zip(texts, logprobs, best, tokens, strict=True):
                if not found or text[-1] not in stop:
                    found.append(float(value))
                text.append(text[-1] if text[-1] in stop else int(token))
        return [sum(found) / len(found) for found in logprobs]

    @torch.no_grad()
    def _forward(
        self, prompt: Prompt, texts: list[list[int]], cells: list[Cells]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """All logits, and the last position's states before anything is added there.

        Args:
            prompt: What comes first in every row.
            texts: What follows it in each, all of one length.
            cells: What is added in each.
        """
        seen: dict[int, Tensor] = {}

        def edit(block: int, states: Tensor) -> Tensor:
            seen[block] = states[:, -1].clone()
            states = states.clone()
            for row, added in enumerate(cells):
                for (where, position), deltas in added.items():
                    if where == block:
                        for delta in deltas:
                            states[row, position] += delta
            return states

        hooks = {
            block: lambda states, block=block: edit(block, states)
            for block in range(len(self.loaded.blocks))
        }
        rows = [[*prompt.token_ids, *text] for text in texts]
        with block_hooks(self.loaded.blocks, hooks):
            output = self.loaded.model(input_ids=torch.tensor(rows), use_cache=False)
        return output.logits, seen
