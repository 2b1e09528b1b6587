"""One call of the decoding engine: admission, the decode step, control points, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stir_train.generation.backend import (
    GenerationCall,
    GenerationCost,
    GenerationRequest,
    GenerationResult,
)
from stir_train.generation.control_hook import (
    Ask,
    ControlHook,
    PassPlan,
    PassRecord,
    Sites,
    asks_at_points,
    side_by_side,
    stack_states,
)
from stir_train.generation.controller import (
    ControlBatch,
    Decision,
    controllers_of,
    previewing,
    reads_uncertainty,
)
from stir_train.generation.decisions import records_of
from stir_train.generation.noise import uniforms
from stir_train.generation.sampling import next_tokens
from stir_train.generation.transformers.prefix_plan import hold_planned, prefill_plan
from stir_train.generation.transformers.preview import ForkPoint, Previewer
from stir_train.generation.transformers.shared_prefix import SharedPrefix, shared_tokens
from stir_train.generation.transformers.slot_cache import SlotCache
from stir_train.generation.transformers.slot_forward import SlotForward
from stir_train.generation.transformers.slots import Row, Slots
from stir_train.generation.uncertainty import step_uncertainties
from stir_train.models.load import LoadedModel
from stir_train.types.places import PROMPT_END
from stir_train.types.rollout import Rollout
from stir_train.types.steering import SteeringDecision
from stir_train.types.trajectory import CapturedStates, StateLabel

PREFILL_TOKENS = 1 << 14
"""Padded tokens of the contexts of a prefill pass, which bounds its memory."""
CPU_PREFILL_TOKENS = 1 << 10
"""Fed at once on a CPU: more rows gain nothing there, and what a pass works on stays in the cache."""


@dataclass
class _Captured:
    """Captured rows in the order they came, each with the index of its request."""

    owners: list[int] = field(default_factory=list)
    labels: list[StateLabel] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


class Decoding:
    """One call of ``generate``: its slots, cache, queue and results."""

    def __init__(
        self, loaded: LoadedModel, forward: SlotForward, cache: SlotCache, call: GenerationCall
    ) -> None:
        max_rows = cache.num_slots
        requests, sampling = call.requests, call.sampling
        control = call.control
        self.listener = call.listener
        self.device = loaded.device
        self.forward, self.sampling = forward, sampling
        self.control, self.controllers = control, controllers_of(call.controller)
        self.automaton = None if control is None else control.automaton.to(self.device)
        self.capture_blocks = () if control is None else control.capture_blocks
        self.proposer = previewing(call.controller)
        # What previews is shown captured states; the others are asked inside the pass.
        shown = () if self.proposer is None else self.proposer.reads
        self.asked = () if self.proposer is not None else self.controllers
        self.hook = ControlHook(self.asked, (*self.capture_blocks, *shown))
        self.tells_uncertainty = reads_uncertainty(call.controller)
        self.max_rows = max_rows
        self.slots = Slots(max_rows, sampling, vocab_size=loaded.vocab_size, device=self.device)
        self.cache = cache  # kept from call to call: what it holds is stale, and never read
        self.stop = torch.tensor(sampling.stop_token_ids, dtype=torch.long, device=self.device)
        self.requests = requests
        self.keys = call.noise_keys()
        self.queue = _prefill_groups(requests, max_rows)
        shared = shared_tokens(requests, self.asked)
        self.shared = SharedPrefix(shared, self.asked, self.hook, forward, self.device)
        self.rollouts: list[Rollout | None] = [None] * len(requests)
        self.decisions: list[list[SteeringDecision]] = [[] for _ in requests]
        self.captured = _Captured()
        self.cost = GenerationCost()
        self.previewer: Previewer | None = None
        if self.proposer is not None:
            self.previewer = Previewer(
                forward,
                self.hook,
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
                if taken and self._is_too_large(len(taken) + 1, width):
                    break
                free -= len(self.queue[0])
                taken.append(self.queue.pop(0))
            if not taken:
                break
            self._prefill(taken, width)
        return bool(self.slots.rows)

    def _is_too_large(self, num_rows: int, width: int) -> bool:
        """Whether a prefill pass should have fewer rows; what they share is fed once, before."""
        num_fed = num_rows * (width - self.shared.num_tokens)
        on_cpu = self.device.type == "cpu"
        return num_rows * width > PREFILL_TOKENS or (on_cpu and num_fed > CPU_PREFILL_TOKENS)

    def _num_context(self, index: int) -> int:
        request = self.requests[index]
        return len(request.prompt.token_ids) + len(request.prefix_token_ids)

    def _prefill(self, groups: list[list[int]], width: int) -> None:
        """Feed each group's shared context once, then give every request its own slot."""
        contexts = []
        for group in groups:
            request = self.requests[group[0]]
            contexts.append([*request.prompt.token_ids, *request.prefix_token_ids])
        start = self.shared.num_tokens
        token_ids = torch.zeros((len(groups), width - start), dtype=torch.long)
        for i, context in enumerate(contexts):
            token_ids[i, : len(context) - start] = torch.tensor(context[start:])
        last = torch.tensor([len(context) - 1 - start for context in contexts], device=self.device)
        positions = torch.arange(start, width, device=self.device).expand(len(groups), -1)
        leading = [self.requests[group[0]] for group in groups]
        staging = self.shared.staging(leading, width, self.cost)
        plan = prefill_plan(leading, self.asked, self.automaton, self.device, start=start)
        with self.hook.carrying_out(plan) as record:
            logits = self.forward(
                staging, token_ids.to(self.device), positions, num_keys=width, columns=last
            )
        self.cost.forward_passes += 1
        self.cost.prefill_passes += 1
        self.cost.token_forwards += sum(len(context) - start for context in contexts)
        opened, sources = [], []
        for i, group in enumerate(groups):
            for index in group:
                row = Row(index, self.requests[index], len(contexts[i]))
                row.forward_passes = 1
                opened.append(self.slots.open(row, self.keys[index], self.automaton))
                hold_planned(self.slots.holds, opened[-1], row.request, self.automaton)
                sources.append(i)
        slots, rows = self._tensor(opened), self._tensor(sources)
        self.cache.copy_rows(staging, rows, slots, width)
        requests = [self.slots.rows[slot].request for slot in opened]
        for ask, decision in record.decided:
            of_samples, made, told = _for_every_sample(ask, decision, requests, sources)
            self._record(of_samples, made, slots[self._tensor(told)])
        self._sample(slots, logits[rows])

    # -- decoding ------------------------------------------------------------------------------

    def step(self) -> None:
        """Feed one token of every row, act at control points, sample the next."""
        num_rows = len(self.slots)
        tokens, positions = self.slots.next_token[:num_rows], self.slots.position[:num_rows]
        num_keys = self.slots.num_keys
        plan = self._plan_control(tokens)
        with self.hook.carrying_out(plan) as record:
            logits = self.forward(
                self.cache, tokens[:, None], positions[:, None], num_keys=num_keys
            )
        self.cost.forward_passes += 1
        self.cost.token_forwards += num_rows
        for row in self.slots.rows:
            row.forward_passes += 1
        if plan.captures is not None:
            rows = plan.captures.rows
            if self.capture_blocks:
                self._keep_states(plan.captures, record, tokens)
            if self.previewer is not None:
                at = ForkPoint(rows, tokens[rows], positions[rows], num_keys)
                self._preview(plan.captures, record, at, logits)
        for ask, decision in record.decided:
            self._record(ask, decision, ask.sites.rows)
        self._sample(torch.arange(num_rows, device=self.device), logits)

    def _plan_control(self, tokens: Int[Tensor, "B"]) -> PassPlan:
        """Advance the automaton and list the rows whose token is a control point."""
        num_rows = len(tokens)
        active: list[int] = []
        if self.automaton is not None and self.control is not None:
            state, hits = self.automaton.step(self.slots.automaton_state[:num_rows], tokens)
            self.slots.automaton_state[:num_rows] = state
            reached = hits.nonzero()[:, 0]
            self.slots.holds.end_segments(reached)
            for slot in reached.tolist():
                row = self.slots.rows[slot]
                row.control_points.append(row.num_keys - 1 - len(row.request.prompt.token_ids))
                if len(row.control_points) <= self.control.max_points:
                    active.append(slot)
        edits = self.slots.holds.edits(num_rows)
        if not active or not (self.capture_blocks or self.controllers):
            return PassPlan(edits=edits)
        rows = [self.slots.rows[slot] for slot in active]
        batch = ControlBatch(
            prompt_ids=tuple(row.request.prompt.prompt_id for row in rows),
            samples=tuple(row.request.sample for row in rows),
            points=self._tensor([len(row.control_points) for row in rows]),
            token_indices=tuple(row.control_points[-1] for row in rows),
            uncertainties=self._uncertainties(active) if self.tells_uncertainty else None,
        )
        columns = self._tensor([0] * len(active))
        sites = Sites(self._tensor(active), columns, batch)
        return PassPlan(sites, asks_at_points(self.asked, sites, columns), edits)

    def _uncertainties(self, slots: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """How uncertain the steps of rows that are at a control point were."""
        found = []
        for slot in slots:
            ends = self.slots.rows[slot].control_points
            logprobs = self.slots.logprobs[slot, : ends[-1] + 1].tolist()
            found.append(step_uncertainties(logprobs, ends))
        return tuple(found)

    def _keep_states(self, sites: Sites, record: PassRecord, tokens: Int[Tensor, "B"]) -> None:
        self.captured.states.append(stack_states(record.states, self.capture_blocks))
        fed = tokens[sites.rows].tolist()
        for i, slot in enumerate(sites.rows.tolist()):
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

    def _preview(
        self, sites: Sites, record: PassRecord, at: ForkPoint, logits: Float[Tensor, "B V"]
    ) -> None:
        """Preview the proposed candidates and commit what the controller then chooses."""
        assert self.proposer is not None
        assert self.previewer is not None
        states = side_by_side(record.states, self.proposer.reads)
        proposal = self.proposer.propose(states, sites.batch)
        gains, spent = self.previewer.gains(self.cache, at, proposal, self.cost)
        decision = self.proposer.commit(proposal, gains)
        record.decided.append((Ask(self.proposer, sites, sites.columns, sites.columns), decision))
        fired = decision.fires.nonzero()[:, 0]
        if len(fired):
            chosen = at.select(fired)
            logits[chosen.slots] = self.previewer.commit(
                self.cache, chosen, decision.deltas[fired], self.cost
            )
        previewed, fires = proposal.valid.any(1).tolist(), decision.fires.tolist()
        for i, slot in enumerate(at.slots.tolist()):
            row = self.slots.rows[slot]
            row.preview_tokens += int(spent[i])
            row.forward_passes += previewed[i] * self.proposer.preview_tokens + fires[i]

    def _record(self, ask: Ask, decision: Decision, slots: Int[Tensor, "R"]) -> None:
        """Write down what was decided for the rows in some slots, and hold what is to be held."""
        self.slots.holds.hold_decided(ask, decision, slots)
        for slot, (made, impulse) in zip(slots.tolist(), records_of(ask, decision), strict=True):
            row = self.slots.rows[slot]
            self.decisions[row.index].append(made)
            if impulse is not None:
                row.impulses.append(impulse)

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
        """Rollouts, captured states, decisions and the cost, in request order."""
        rollouts = tuple(rollout for rollout in self.rollouts if rollout is not None)
        assert len(rollouts) == len(self.requests), "every request ends with a rollout"
        decisions = tuple(made for of_request in self.decisions for made in of_request)
        return GenerationResult(rollouts, self._captured_states(), self.cost, decisions)

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


def _for_every_sample(
    ask: Ask, decision: Decision, requests: Sequence[GenerationRequest], rows: Sequence[int]
) -> tuple[Ask, Decision, list[int]]:
    """A decision about prompts, told for each of the samples that share them.

    Args:
        ask: With one row a prompt.
        decision: The same.
        requests: The samples.
        rows: The row of the pass that each of them shares.

    Returns:
        The same with one row a sample, and which samples: those that were asked about.
    """
    place = {row: i for i, row in enumerate(ask.sites.rows.tolist())}
    told = [i for i, row in enumerate(rows) if row in place]
    index = torch.tensor([place[rows[i]] for i in told], device=ask.sites.rows.device)
    batch = ControlBatch(
        prompt_ids=tuple(requests[i].prompt.prompt_id for i in told),
        samples=tuple(requests[i].sample for i in told),
        points=ask.sites.batch.points[index],
        token_indices=(PROMPT_END,) * len(told),
    )
    sites = Sites(ask.sites.rows[index], ask.sites.columns[index], batch)
    one_a_sample = Decision(**{name: value[index] for name, value in vars(decision).items()})
    return Ask(ask.controller, sites, ask.first[index], ask.last[index]), one_a_sample, told
