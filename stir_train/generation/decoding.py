"""One call of the decoding engine: admission, the decode step, control points, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.generation.backend import (
    ControlBatch,
    Controller,
    ControlSpec,
    GenerationCost,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
    TokenListener,
    previewing,
)
from stir_train.generation.control_tap import (
    ControlTap,
    Edits,
    PassPlan,
    side_by_side,
    stack_states,
)
from stir_train.generation.noise import row_keys, uniforms
from stir_train.generation.preview import ForkPoint, Previewer
from stir_train.generation.sampling import next_tokens
from stir_train.generation.slot_cache import SlotCache
from stir_train.generation.slot_forward import SlotForward
from stir_train.generation.slots import Row, Slots
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Impulse, Rollout
from stir_train.types.trajectory import CapturedStates, StateLabel

PREFILL_TOKENS = 1 << 14
"""Padded tokens per prefill pass, which bounds its memory."""


@dataclass(frozen=True)
class DecodingCall:
    """The arguments of one ``generate``."""

    requests: Sequence[GenerationRequest]
    sampling: SamplingParams
    seed: int
    control: ControlSpec | None
    controller: Controller | None
    listener: TokenListener | None


@dataclass
class _Captured:
    """Captured rows in the order they came, each with the index of its request."""

    owners: list[int] = field(default_factory=list)
    labels: list[StateLabel] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


class Decoding:
    """One call of ``generate``: its slots, cache, queue and results."""

    def __init__(
        self, loaded: LoadedModel, forward: SlotForward, cache: SlotCache, call: DecodingCall
    ) -> None:
        max_rows = cache.num_slots
        requests, sampling = call.requests, call.sampling
        control, controller = call.control, call.controller
        self.listener = call.listener
        self.device = loaded.device
        self.forward, self.sampling = forward, sampling
        self.control, self.controller = control, controller
        self.automaton = None if control is None else control.automaton.to(self.device)
        self.capture_blocks = () if control is None else control.capture_blocks
        self.tap = ControlTap(controller, self.capture_blocks)
        self.max_rows = max_rows
        self.slots = Slots(max_rows, sampling, vocab_size=loaded.vocab_size, device=self.device)
        self.cache = cache  # kept from call to call: what it holds is stale, and never read
        self.stop = torch.tensor(sampling.stop_token_ids, dtype=torch.long, device=self.device)
        self.requests = requests
        self.keys = row_keys(call.seed, [(r.prompt.prompt_id, r.sample) for r in requests]).tolist()
        self.queue = _prefill_groups(requests, max_rows)
        self.rollouts: list[Rollout | None] = [None] * len(requests)
        self.captured = _Captured()
        self.cost = GenerationCost()
        self.previewer: Previewer | None = None
        self.proposer = previewing(controller)
        if self.proposer is not None:
            self.previewer = Previewer(
                forward,
                self.tap,
                block=self.proposer.block,
                num_tokens=self.proposer.preview_tokens,
                stop_token_ids=sampling.stop_token_ids,
                max_rows=max_rows,
            )

    # -- admission -----------------------------------------------------------------------------

    def admit(self) -> bool:
        """Prefill queued requests into free slots; return whether any row is decoding."""
        while self.queue:
            free = self.max_rows - len(self.slots)
            # Wait for several free slots: a prefill pass per finished row would cost more.
            if self.slots.rows and free < max(1, self.max_rows // 8):
                break
            taken: list[list[int]] = []
            width = 0
            while self.queue and len(self.queue[0]) <= free:
                width = max(width, self._num_context(self.queue[0][0]))
                if taken and width * (len(taken) + 1) > PREFILL_TOKENS:
                    break
                free -= len(self.queue[0])
                taken.append(self.queue.pop(0))
            if not taken:
                break
            self._prefill(taken, width)
        return bool(self.slots.rows)

    def _num_context(self, index: int) -> int:
        request = self.requests[index]
        return len(request.prompt.token_ids) + len(request.prefix_token_ids)

    def _prefill(self, groups: list[list[int]], width: int) -> None:
        """Feed each group's shared context once, then give every request its own slot."""
        contexts = []
        for group in groups:
            request = self.requests[group[0]]
            contexts.append([*request.prompt.token_ids, *request.prefix_token_ids])
        token_ids = torch.zeros((len(groups), width), dtype=torch.long)
        for i, context in enumerate(contexts):
            token_ids[i, : len(context)] = torch.tensor(context)
        last = torch.tensor([len(context) - 1 for context in contexts], device=self.device)
        positions = torch.arange(width, device=self.device).expand(len(groups), width)
        staging = SlotCache(len(groups), growth_tokens=1)
        self.tap.plan = PassPlan(edits=self._planned_edits(groups))
        logits = self.forward(
            staging, token_ids.to(self.device), positions, num_keys=width, columns=last
        )
        self.tap.plan = PassPlan()
        self.cost.forward_passes += 1
        self.cost.prefill_passes += 1
        self.cost.token_forwards += sum(map(len, contexts))
        opened, sources = [], []
        for i, group in enumerate(groups):
            for index in group:
                row = Row(index, self.requests[index], len(contexts[i]))
                row.forward_passes = 1
                opened.append(self.slots.open(row, self.keys[index], self.automaton))
                sources.append(i)
        slots, rows = self._tensor(opened), self._tensor(sources)
        self.cache.copy_rows(staging, rows, slots, width)
        self._sample(slots, logits[rows])

    def _planned_edits(self, groups: list[list[int]]) -> tuple[Edits, ...]:
        """The impulses to replay in a prefill pass, one `Edits` a block."""
        found: dict[int, list[tuple[int, int, Tensor]]] = {}
        for i, group in enumerate(groups):
            request = self.requests[group[0]]
            for impulse in request.planned:
                column = len(request.prompt.token_ids) + impulse.token_index
                found.setdefault(impulse.block, []).append((i, column, impulse.delta))
        return tuple(
            Edits(
                block,
                self._tensor([row for row, _, _ in items]),
                self._tensor([column for _, column, _ in items]),
                torch.stack([delta for _, _, delta in items]).to(self.device),
            )
            for block, items in found.items()
        )

    # -- decoding ------------------------------------------------------------------------------

    def step(self) -> None:
        """Feed one token of every row, act at control points, sample the next."""
        num_rows = len(self.slots)
        tokens, positions = self.slots.next_token[:num_rows], self.slots.position[:num_rows]
        num_keys = self.slots.num_keys
        plan = self._plan_control(tokens)
        self.tap.plan = plan
        logits = self.forward(self.cache, tokens[:, None], positions[:, None], num_keys=num_keys)
        self.tap.plan = PassPlan()
        self.cost.forward_passes += 1
        self.cost.token_forwards += num_rows
        for row in self.slots.rows:
            row.forward_passes += 1
        if plan.batch is not None and plan.rows is not None:
            if self.capture_blocks:
                self._keep_states(plan, tokens)
            if self.previewer is not None:
                at = ForkPoint(plan.rows, tokens[plan.rows], positions[plan.rows], num_keys)
                self._preview(plan, at, logits)
            self._record_impulses(plan)
        self._sample(torch.arange(num_rows, device=self.device), logits)

    def _plan_control(self, tokens: Int[Tensor, "B"]) -> PassPlan:
        """Advance the automaton and list the rows whose token is a control point."""
        if self.automaton is None or self.control is None:
            return PassPlan()
        num_rows = len(tokens)
        state, hits = self.automaton.step(self.slots.automaton_state[:num_rows], tokens)
        self.slots.automaton_state[:num_rows] = state
        active: list[int] = []
        for slot in hits.nonzero()[:, 0].tolist():
            row = self.slots.rows[slot]
            row.control_points.append(row.num_keys - 1 - len(row.request.prompt.token_ids))
            if len(row.control_points) <= self.control.max_points:
                active.append(slot)
        if not active or not (self.capture_blocks or self.controller):
            return PassPlan()
        rows = [self.slots.rows[slot] for slot in active]
        batch = ControlBatch(
            prompt_ids=tuple(row.request.prompt.prompt_id for row in rows),
            samples=tuple(row.request.sample for row in rows),
            points=self._tensor([len(row.control_points) for row in rows]),
            token_indices=tuple(row.control_points[-1] for row in rows),
        )
        decides = self.controller is not None and self.previewer is None
        return PassPlan(rows=self._tensor(active), batch=batch, decide=decides)

    def _keep_states(self, plan: PassPlan, tokens: Int[Tensor, "B"]) -> None:
        assert plan.rows is not None
        self.captured.states.append(stack_states(plan.states, self.capture_blocks))
        fed = tokens[plan.rows].tolist()
        for i, slot in enumerate(plan.rows.tolist()):
            row = self.slots.rows[slot]
            self.captured.owners.append(row.index)
            self.captured.labels.append(
                StateLabel(
                    prompt_id=row.request.prompt.prompt_id,
                    sample=row.request.sample,
                    point=len(row.control_points),
                    token_index=row.control_points[-1],
                    token_id=fed[i],
                )
            )

    def _preview(self, plan: PassPlan, at: ForkPoint, logits: Float[Tensor, "B V"]) -> None:
        """Preview the proposed candidates and commit what the controller then chooses."""
        assert self.proposer is not None
        assert self.previewer is not None
        assert plan.batch is not None
        states = side_by_side(plan.states, self.proposer.reads)
        proposal = self.proposer.propose(states, plan.batch)
        gains, spent = self.previewer.gains(self.cache, at, proposal, self.cost)
        impulses = self.proposer.commit(states, plan.batch, gains)
        plan.impulses = impulses
        fired = impulses.fires.nonzero()[:, 0]
        if len(fired):
            chosen = at.select(fired)
            logits[chosen.slots] = self.previewer.commit(
                self.cache, chosen, impulses.deltas[fired], self.cost
            )
        previewed, fires = proposal.valid.any(1).tolist(), impulses.fires.tolist()
        for i, slot in enumerate(at.slots.tolist()):
            row = self.slots.rows[slot]
            row.preview_tokens += int(spent[i])
            row.forward_passes += previewed[i] * self.proposer.preview_tokens + fires[i]

    def _record_impulses(self, plan: PassPlan) -> None:
        if plan.impulses is None or plan.rows is None or self.controller is None:
            return
        impulses = plan.impulses
        fired = impulses.fires.nonzero()[:, 0]
        entries, strengths = impulses.entries[fired].tolist(), impulses.strengths[fired].tolist()
        for i, slot in enumerate(plan.rows[fired].tolist()):
            row = self.slots.rows[slot]
            row.impulses.append(
                Impulse(row.control_points[-1], self.controller.block, entries[i], strengths[i])
            )

    def _sample(self, slots: Int[Tensor, "R"], logits: Float[Tensor, "R V"]) -> None:
        """Choose each row's next token, and close the rows that are finished."""
        draws = None
        if self.sampling.temperature > 0:
            draws = uniforms(self.slots.noise_key[slots], self.slots.count[slots])
        seen = None if self.slots.seen is None else self.slots.seen[slots]
        tokens, logprobs = next_tokens(logits, self.sampling, draws, seen)
        self.slots.accept(slots, tokens, logprobs)
        if self.listener is not None:
            for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
                self.listener(self.slots.rows[slot].index, token)
        stopped = torch.isin(tokens, self.stop)
        finished = stopped | (self.slots.count[slots] >= self.sampling.max_new_tokens)
        closing = finished.nonzero()[:, 0]
        if not len(closing):
            return
        freed = slots[closing].tolist()
        for slot, stop in zip(freed, stopped[closing].tolist(), strict=True):
            row = self.slots.rows[slot]
            self.rollouts[row.index] = self.slots.close(slot, stopped=stop)
        longest = self.slots.num_keys
        movers, holes = self.slots.compact(freed)
        if movers:
            self.cache.copy_rows(self.cache, self._tensor(movers), self._tensor(holes), longest)

    def result(self) -> GenerationResult:
        """Everything, in request order."""
        rollouts = tuple(rollout for rollout in self.rollouts if rollout is not None)
        assert len(rollouts) == len(self.requests), "every request ends with a rollout"
        return GenerationResult(rollouts, self._captured_states(), self.cost)

    def _captured_states(self) -> CapturedStates | None:
        if not self.capture_blocks:
            return None
        kept = self.captured
        if not kept.labels:
            width = self.forward.width
            return CapturedStates(
                (), self.capture_blocks, torch.zeros(0, len(self.capture_blocks), width)
            )
        order = sorted(
            range(len(kept.labels)), key=lambda i: (kept.owners[i], kept.labels[i].point)
        )
        states = torch.cat(kept.states).cpu()[torch.tensor(order)]
        return CapturedStates(tuple(kept.labels[i] for i in order), self.capture_blocks, states)

    def _tensor(self, values: list[int]) -> Int[Tensor, "R"]:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def _prefill_groups(requests: Sequence[GenerationRequest], max_rows: int) -> list[list[int]]:
    """Requests that share a prefill, no group larger than the slots, longest contexts first."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, request in enumerate(requests):
        planned = tuple(id(impulse) for impulse in request.planned)
        key = (request.prompt.token_ids, request.prefix_token_ids, planned)
        groups.setdefault(key, []).append(index)
    parts = [
        group[i : i + max_rows] for group in groups.values() for i in range(0, len(group), max_rows)
    ]
    return sorted(
        parts,
        key=lambda group: (
            -(len(requests[group[0]].prompt.token_ids) + len(requests[group[0]].prefix_token_ids))
        ),
    )
