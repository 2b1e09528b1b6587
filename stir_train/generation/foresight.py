"""What controllers decide along completions that are there already, from the states recorded there.

Until a controller acts, the trajectory is the unsteered one. So what it decides along that one holds
up to the first control point where it acts, and only what comes after needs to be decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stir_train.generation.control_hook import Ask, Sites
from stir_train.generation.controller import (
    ControlBatch,
    Controller,
    Decision,
    PreviewingController,
    Steering,
    controllers_of,
    reads_uncertainty,
)
from stir_train.generation.decisions import records_of
from stir_train.types.places import PLACES_AT_PROMPT
from stir_train.types.steering import SteeringDecision
from stir_train.types.trajectory import CapturedStates


@dataclass(frozen=True)
class Foresight:
    """How far unsteered completions stay as they are under controllers.

    Attributes:
        first: By problem, index of the control-point token at which a controller first acts, or first has to
            preview; problems along whose completion none does are left out.
        before: By problem, what was decided at the control points before that one, in order.
    """

    first: Mapping[str, int]
    before: Mapping[str, Sequence[SteeringDecision]]


def is_foreseeable(steering: Steering | None, blocks: Sequence[int]) -> bool:
    """Whether the states of some blocks at control points are all that controllers decide from."""
    return not reads_uncertainty(steering) and all(
        controller.place not in PLACES_AT_PROMPT and set(controller.reads) <= set(blocks)
        for controller in controllers_of(steering)
    )


def foresee(steering: Steering | None, states: CapturedStates) -> Foresight:
    """Ask controllers about completions that nothing steered, point by point while none of them acts.

    Args:
        steering: Controllers that are foreseeable (`is_foreseeable`).
        states: Of one completion a problem, at the control points where the controllers are asked, on the
            device where they expect them.
    """
    # As in a pass, where the lower blocks are run first.
    controllers = sorted(controllers_of(steering), key=lambda controller: controller.block)
    shown = [states.side_by_side(controller.reads) for controller in controllers]
    first: dict[str, int] = {}
    before: dict[str, list[SteeringDecision]] = {}
    for point in sorted({label.point for label in states.labels}):
        rows = [
            row
            for row, label in enumerate(states.labels)
            if label.point == point and label.prompt_id not in first
        ]
        if not rows:
            break  # whoever comes to a later point has been at this one
        index = torch.tensor(rows, device=states.states.device)
        sites = _sites(states, rows, index)
        asked = [
            (controller, *_ask(controller, some[index], sites.batch))
            for controller, some in zip(controllers, shown, strict=True)
        ]
        acts = torch.stack([acts for _, _, acts in asked]).any(0).tolist()
        for prompt_id, token_index, does in zip(
            sites.batch.prompt_ids, sites.batch.token_indices, acts, strict=True
        ):
            if does:
                first[prompt_id] = token_index
        for controller, decision, _ in asked:
            if decision is not None:
                ask = Ask(controller, sites, sites.columns, sites.columns)
                for made, _ in records_of(ask, decision):
                    if made.prompt_id not in first:
                        before.setdefault(made.prompt_id, []).append(made)
    return Foresight(first, before)


def _sites(states: CapturedStates, rows: Sequence[int], index: Tensor) -> Sites:
    labels = [states.labels[row] for row in rows]
    batch = ControlBatch(
        prompt_ids=tuple(label.prompt_id for label in labels),
        samples=tuple(label.sample for label in labels),
        points=torch.tensor([label.point for label in labels], device=index.device),
        token_indices=tuple(label.token_index for label in labels),
    )
    return Sites(index, torch.zeros_like(index), batch)


def _ask(
    controller: Controller, states: Float[Tensor, "R W"], batch: ControlBatch
) -> tuple[Decision | None, Bool[Tensor, "R"]]:
    """What a controller decides where it does not act, and where it does or has to preview."""
    if isinstance(controller, PreviewingController) and controller.preview_tokens:
        proposal = controller.propose(states, batch)
        # Rows with a candidate are previewed by the engine; of the others nothing is to be gained.
        unseen = torch.full(proposal.scores.shape, -torch.inf, device=states.device)
        return controller.commit(proposal, unseen), proposal.valid.any(1)
    decision = controller.decide(states, batch)
    if decision is None:
        return None, torch.zeros(len(states), dtype=torch.bool, device=states.device)
    return decision, decision.fires
