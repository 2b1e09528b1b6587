"""One pass of vLLM: whose its rows are, what is read and added there, and what came of it.

vLLM lays the tokens of all requests of a pass end to end. Here they are one row of ``T`` columns, so that
`ControlHook` does in vLLM's passes what it does everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from stir_train.generation.backend import ControlSpec
from stir_train.generation.control_hook import (
    Ask,
    Edits,
    PassPlan,
    PassRecord,
    Sites,
    asks_at_points,
    asks_at_prompt,
    stack_states,
)
from stir_train.generation.controller import ControlBatch, Controller, Decision
from stir_train.generation.decisions import records_of
from stir_train.generation.vllm.track import Track
from stir_train.types.places import PLACES_AT_PROMPT, PROMPT_END
from stir_train.types.trajectory import StateLabel


@dataclass(frozen=True)
class Fed:
    """What a pass feeds of one completion.

    Attributes:
        track: Which.
        column: Of the pass, at its first token.
        first: That token's position, counted from the prompt's first.
        token_ids: The tokens.
    """

    track: Track
    column: int
    first: int
    token_ids: Sequence[int]

    def column_of(self, position: int) -> int:
        """The column of a position."""
        return self.column + position - self.first


@dataclass(frozen=True)
class PlannedPass:
    """What a pass does, and whose rows it asks about.

    Attributes:
        plan: What `ControlHook` carries out.
        at_points: Completions that are at a control point, in the order of the sites.
        at_prompt_ends: Completions at the prompt's end, in the order of theirs.
    """

    plan: PassPlan
    at_points: tuple[Track, ...]
    at_prompt_ends: tuple[Track, ...]


def plan_pass(
    fed: Sequence[Fed],
    control: ControlSpec | None,
    controllers: Sequence[Controller],
    device: torch.device,
) -> PlannedPass:
    """Note what is fed, and list what to read, ask and add.

    Args:
        fed: One for each completion of the pass.
        control: How many control points count, and what to capture there.
        controllers: Who steers.
        device: Of the pass.
    """
    ending = [one for one in fed if _feeds_prompt_end(one)]
    points: list[tuple[Fed, int]] = []
    max_points = 0 if control is None else control.max_points
    for one in fed:
        reached = one.track.feed(one.first, one.token_ids)
        if reached is not None and len(one.track.control_points) <= max_points:
            points.append((one, reached))
    asks: tuple[Ask, ...] = ()
    captures = None
    if points:
        sites = _point_sites(points, device)
        captures = sites if control is not None and control.capture_blocks else None
        asks += asks_at_points(controllers, sites, sites.columns)
    if ending and any(controller.place in PLACES_AT_PROMPT for controller in controllers):
        asks += _prompt_asks(ending, controllers, device)
    return PlannedPass(
        PassPlan(captures, asks, _edits(fed, device)),
        tuple(one.track for one, _ in points),
        tuple(one.track for one in ending),
    )


def record_pass(
    planned: PlannedPass,
    record: PassRecord,
    capture_blocks: Sequence[int],
    token_ids: Sequence[int],
) -> None:
    """Write what a pass found and decided to the completions that it is about.

    Args:
        planned: The pass.
        record: What it found.
        capture_blocks: Blocks whose states are kept.
        token_ids: The tokens of its columns.
    """
    captures = planned.plan.captures
    if captures is not None:
        states = stack_states(record.states, capture_blocks)
        columns = captures.columns.tolist()
        for row, track in enumerate(planned.at_points):
            track.labels.append(
                StateLabel(
                    prompt_id=track.request.prompt.prompt_id,
                    sample=track.request.sample,
                    point=len(track.control_points),
                    token_index=track.control_points[-1],
                    token_id=token_ids[columns[row]],
                )
            )
            track.states.append(states[row])
    for ask, decision in record.decided:
        at_prompt = ask.controller.place in PLACES_AT_PROMPT
        _record(ask, decision, planned.at_prompt_ends if at_prompt else planned.at_points)


def _record(ask: Ask, decision: Decision, tracks: Sequence[Track]) -> None:
    made = records_of(ask, decision)
    for row, (track, (decided, impulse)) in enumerate(zip(tracks, made, strict=True)):
        track.decisions.append(decided)
        if impulse is not None:
            track.impulses.append(impulse)
            track.keep(impulse.place, impulse.token_index, impulse.block, decision.deltas[row])


def _feeds_prompt_end(fed: Fed) -> bool:
    track = fed.track
    if track.request.prefix_token_ids:
        return False
    end = fed.first + len(fed.token_ids)
    return track.is_first_fed(track.num_prompt + PROMPT_END, fed.first, end)


def _point_sites(points: Sequence[tuple[Fed, int]], device: torch.device) -> Sites:
    columns = [one.column_of(one.track.num_prompt + index) for one, index in points]
    batch = ControlBatch(
        prompt_ids=tuple(one.track.request.prompt.prompt_id for one, _ in points),
        samples=tuple(one.track.request.sample for one, _ in points),
        points=torch.tensor([len(one.track.control_points) for one, _ in points], device=device),
        token_indices=tuple(index for _, index in points),
    )
    return _sites(columns, batch, device)


def _prompt_asks(
    ending: Sequence[Fed], controllers: Sequence[Controller], device: torch.device
) -> tuple[Ask, ...]:
    """Ask at the prompts' ends; what acts at every token acts at the whole prompt, which the pass feeds."""
    columns = [one.column_of(one.track.num_prompt + PROMPT_END) for one in ending]
    batch = ControlBatch(
        prompt_ids=tuple(one.track.request.prompt.prompt_id for one in ending),
        samples=tuple(one.track.request.sample for one in ending),
        points=torch.zeros(len(ending), dtype=torch.long, device=device),
        token_indices=(PROMPT_END,) * len(ending),
    )
    sites = _sites(columns, batch, device)
    starts = _integers([one.column for one in ending], device)
    return asks_at_prompt(controllers, sites, sites.columns, starts)


def _sites(columns: Sequence[int], batch: ControlBatch, device: torch.device) -> Sites:
    at = _integers(columns, device)
    return Sites(torch.zeros_like(at), at, batch)


def _edits(fed: Sequence[Fed], device: torch.device) -> tuple[Edits, ...]:
    """What goes on being added, and what is added again where tokens are fed again."""
    columns: dict[int, list[int]] = {}
    deltas: dict[int, list[Tensor]] = {}
    for one in fed:
        end = one.first + len(one.token_ids)
        for span in one.track.spans:
            stop = end if span.last is None else min(end, span.last + 1)
            covered = range(max(one.first, span.first), stop)
            columns.setdefault(span.block, []).extend(one.column_of(p) for p in covered)
            deltas.setdefault(span.block, []).extend([span.delta] * len(covered))
    return tuple(
        Edits(
            block,
            torch.zeros(len(at), dtype=torch.long, device=device),
            _integers(at, device),
            torch.stack([delta.to(device) for delta in deltas[block]]),
        )
        for block, at in columns.items()
        if at
    )


def _integers(values: Sequence[int], device: torch.device) -> Int[Tensor, "R"]:
    return torch.tensor(values, dtype=torch.long, device=device)
