"""What a prefill pass adds: impulses that a request plans, and controllers asked at the prompt's end."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stir_train.data.control_points import ControlPointAutomaton
from stir_train.generation.backend import GenerationRequest, PlannedImpulse
from stir_train.generation.control_hook import Ask, Edits, PassPlan, Sites, asks_at_prompt
from stir_train.generation.controller import ControlBatch, Controller
from stir_train.generation.holds import Holds
from stir_train.types.places import HELD_PLACES, PROMPT_END, tokens_of


def prefill_plan(
    requests: Sequence[GenerationRequest],
    controllers: Sequence[Controller],
    automaton: ControlPointAutomaton | None,
    device: torch.device,
    *,
    start: int = 0,
) -> PassPlan:
    """Plan a pass over right-padded contexts.

    Args:
        requests: One a row; those that share the row's context differ in their samples alone.
        controllers: Asked at the end of prompts that nothing follows yet.
        automaton: Finds the prefixes' control points.
        device: Of the pass.
        start: Tokens of every context that were fed before; the pass's first column comes after them.
    """
    return PassPlan(
        asks=_asks(requests, controllers, device, start),
        edits=_edits(requests, automaton, device, start),
    )


def _asks(
    requests: Sequence[GenerationRequest],
    controllers: Sequence[Controller],
    device: torch.device,
    start: int,
) -> tuple[Ask, ...]:
    rows = [row for row, request in enumerate(requests) if not request.prefix_token_ids]
    if not rows:
        return ()
    asked = [requests[row] for row in rows]
    columns = torch.tensor([len(r.prompt.token_ids) - 1 - start for r in asked], device=device)
    batch = ControlBatch(
        prompt_ids=tuple(request.prompt.prompt_id for request in asked),
        samples=tuple(request.sample for request in asked),
        points=torch.zeros_like(columns),
        token_indices=(PROMPT_END,) * len(asked),
    )
    sites = Sites(torch.tensor(rows, device=device), columns, batch)
    return asks_at_prompt(controllers, sites, columns)


def _edits(
    requests: Sequence[GenerationRequest],
    automaton: ControlPointAutomaton | None,
    device: torch.device,
    start: int,
) -> tuple[Edits, ...]:
    rows: dict[int, list[int]] = {}
    columns: dict[int, list[int]] = {}
    deltas: dict[int, list[torch.Tensor]] = {}
    for row, request in enumerate(requests):
        for impulse in request.planned:
            first, last = _tokens(request, impulse, automaton)
            begin = len(request.prompt.token_ids) - start
            covered = range(max(0, begin + first), begin + last + 1)
            rows.setdefault(impulse.block, []).extend([row] * len(covered))
            columns.setdefault(impulse.block, []).extend(covered)
            deltas.setdefault(impulse.block, []).extend([impulse.delta] * len(covered))
    return tuple(
        Edits(
            block,
            torch.tensor(rows[block], device=device),
            torch.tensor(columns[block], device=device),
            torch.stack(deltas[block]).to(device),
        )
        for block in rows
    )


def hold_planned(
    holds: Holds, slot: int, request: GenerationRequest, automaton: ControlPointAutomaton | None
) -> None:
    """Go on with what a request's plan holds beyond its prefix."""
    for impulse in request.planned:
        _, last = _tokens(request, impulse, automaton)
        if impulse.place in HELD_PLACES and last == len(request.prefix_token_ids) - 1:
            row = torch.tensor([slot], device=holds.device)
            holds.hold(row, impulse.block, impulse.place, impulse.delta[None])


def _tokens(
    request: GenerationRequest, impulse: PlannedImpulse, automaton: ControlPointAutomaton | None
) -> tuple[int, int]:
    """The first and last token of the context that an impulse is added at."""
    points: tuple[int, ...] = ()
    if automaton is not None and impulse.place == "segment":
        points = automaton.find(request.prefix_token_ids, request.prompt.token_ids)
    return tokens_of(
        impulse.place,
        impulse.token_index,
        points,
        num_prompt_tokens=len(request.prompt.token_ids),
        last=len(request.prefix_token_ids) - 1,
    )
