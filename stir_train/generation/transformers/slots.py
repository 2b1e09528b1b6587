"""The rows being decoded: their device-side registers and host-side records."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stir_train.data.control_points import ControlPointAutomaton
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.holds import Holds
from stir_train.types.rollout import Impulse, Rollout
from stir_train.types.steering import SteeringDecision


@dataclass
class Row:
    """One completion in progress.

    Attributes:
        index: Place in the caller's request order.
        request: What is being completed.
        control_points: Token indices so far.
        decisions, impulses: Decided and injected so far.
        forward_passes, preview_tokens: Cost so far.
        num_keys: Prompt and completion tokens fed or about to be fed.
    """

    index: int
    request: GenerationRequest
    num_keys: int
    control_points: list[int] = field(default_factory=list)
    decisions: list[SteeringDecision] = field(default_factory=list)
    impulses: list[Impulse] = field(default_factory=list)
    forward_passes: int = 0
    preview_tokens: int = 0


class Slots:
    """Registers of rows ``0..n-1``; a freed slot is filled by the last row.

    Attributes:
        rows: Host-side records, one a slot in use.
        next_token: ``Int[B]``, sampled but not yet fed.
        position: ``Int[B]``, where it will be fed.
        count: ``Int[B]``, completion tokens so far, the unfed one included.
        automaton_state: ``Int[B]``.
        noise_key: ``Int[B]``.
        token_ids, logprobs: ``[B, max_new_tokens]``, the completions.
        seen: ``Bool[B V]``, for the repetition penalty; None without one.
        holds: What is added to rows until something ends it.
    """

    def __init__(
        self, num_slots: int, sampling: SamplingParams, *, vocab_size: int, device: torch.device
    ) -> None:
        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self.rows: list[Row] = []
        self.next_token = integers(num_slots)
        self.position = integers(num_slots)
        self.count = integers(num_slots)
        self.automaton_state = integers(num_slots)
        self.noise_key = integers(num_slots)
        self.token_ids = integers(num_slots, sampling.max_new_tokens)
        self.logprobs = torch.zeros(num_slots, sampling.max_new_tokens, device=device)
        self.holds = Holds(num_slots, device)
        self.seen: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros((num_slots, vocab_size), dtype=torch.bool, device=device)

    def __len__(self) -> int:
        """Slots in use."""
        return len(self.rows)

    @property
    def num_keys(self) -> int:
        """The most keys that any row's next pass attends to, known without asking the device."""
        return max(row.num_keys for row in self.rows)

    def open(self, row: Row, noise_key: int, automaton: ControlPointAutomaton | None) -> int:
        """Put a new row in the first free slot, its prefix already written; return the slot."""
        slot = len(self.rows)
        prompt, prefix = row.request.prompt.token_ids, row.request.prefix_token_ids
        self.rows.append(row)
        self.position[slot] = len(prompt) + len(prefix) - 1
        self.count[slot] = len(prefix)
        self.noise_key[slot] = noise_key
        self.holds.release(slot)
        if automaton is not None:
            self.automaton_state[slot] = _read_prefix(automaton, row)
        if prefix:
            self.token_ids[slot, : len(prefix)] = torch.tensor(prefix)
            self.logprobs[slot, : len(prefix)] = float("nan")
        if self.seen is not None:
            self.seen[slot] = False
            self.seen[slot, torch.tensor([*prompt, *prefix])] = True
        return slot

    def accept(self, slots: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
        """Record a sampled token for each of ``slots``."""
        self.token_ids[slots, self.count[slots]] = tokens
        self.logprobs[slots, self.count[slots]] = logprobs
        self.next_token[slots] = tokens
        self.count[slots] += 1
        self.position[slots] += 1
        for slot in slots.tolist() if len(slots) < len(self.rows) else range(len(self.rows)):
            self.rows[slot].num_keys += 1
        if self.seen is not None:
            self.seen[slots, tokens] = True

    def close(self, slot: int, *, stopped: bool) -> Rollout:
        """The finished completion of a slot; the slot stays until `compact`."""
        row, count = self.rows[slot], int(self.count[slot])
        request = row.request
        return Rollout(
            prompt_id=request.prompt.prompt_id,
            sample=request.sample,
            prompt_token_ids=request.prompt.token_ids,
            token_ids=tuple(self.token_ids[slot, :count].tolist()),
            logprobs=tuple(self.logprobs[slot, :count].tolist()),
            control_points=tuple(row.control_points),
            finish_reason="stop" if stopped else "length",
            impulses=tuple(row.impulses),
            preview_tokens=row.preview_tokens,
            forward_passes=row.forward_passes,
        )

    def compact(self, freed: list[int]) -> tuple[list[int], list[int]]:
        """Drop freed slots by moving the last rows into the holes; return (from, to) slots."""
        num_left = len(self.rows) - len(freed)
        gone = set(freed)
        holes = [slot for slot in freed if slot < num_left]
        movers = [slot for slot in range(num_left, len(self.rows)) if slot not in gone]
        for source, hole in zip(movers, holes, strict=True):
            self.rows[hole] = self.rows[source]
        del self.rows[num_left:]
        if movers:
            for register in self._registers():
                register[holes] = register[movers]
            self.holds.move(movers, holes)
        return movers, holes

    def _registers(self) -> list[Tensor]:
        registers = [
            self.next_token,
            self.position,
            self.count,
            self.automaton_state,
            self.noise_key,
            self.token_ids,
            self.logprobs,
        ]
        return registers if self.seen is None else [*registers, self.seen]


def _read_prefix(automaton: ControlPointAutomaton, row: Row) -> int:
    """Note the prefix's control points in the row; return the automaton's state after it."""
    request = row.request
    device = automaton.next_state.device
    state = torch.tensor([automaton.start(request.prompt.token_ids)], device=device)
    for index, token in enumerate(request.prefix_token_ids):
        state, hit = automaton.step(state, torch.tensor([token], device=device))
        if bool(hit):
            row.control_points.append(index)
    return int(state)
