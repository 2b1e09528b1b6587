"""What decides about steering: the protocol of a controller, what it is given and what it returns.

A controller is a pure function of the states that it is shown. Whoever runs it (the engine, `steering`,
a teacher-forced pass) adds what it decides and keeps the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.types.places import Place


@dataclass(frozen=True)
class ControlBatch:
    """The rows of a pass at which a controller is asked.

    Attributes:
        prompt_ids, samples: ``[R]``, which rollouts. Samples of a prompt that share its prefill are asked
            about once at the prompt's end, as its first sample.
        points: ``Int[R]``, control point ``m``, from 1; 0 is the prompt's end.
        token_indices: ``[R]``, index of the token in the completion; -1 is the prompt's last token.
        uncertainties: ``[R]``, of every step up to the one that ends here, its mean negative log-probability
            (nats); None where no controller reads them (`ReadsUncertainty`), or whoever asks does not know.
    """

    prompt_ids: tuple[str, ...]
    samples: tuple[int, ...]
    points: Int[Tensor, "R"]
    token_indices: tuple[int, ...]
    uncertainties: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class Decision:
    """What a controller decides for the rows of a `ControlBatch`, and on what grounds.

    Attributes:
        fires: ``Bool[R]``; rows that are left alone stay bitwise untouched.
        deltas: ``Float[R D]``, added to the state where ``fires``.
        chosen: ``Int[R]``, basis row, or -1 for none and for a vector that is in no basis.
        strengths: ``Float[R]``, the multiplier; 0 where nothing is added.
        candidates: ``Int[R L]``, basis rows considered; meaningless where not ``valid``.
        scores: ``Float[R L]``, of the candidates.
        valid: ``Bool[R L]``, which candidates a row has.
        null_scores: ``Float[R]``, of doing nothing.
    """

    fires: Bool[Tensor, "R"]
    deltas: Float[Tensor, "R D"]
    chosen: Int[Tensor, "R"]
    strengths: Float[Tensor, "R"]
    candidates: Int[Tensor, "R L"]
    scores: Float[Tensor, "R L"]
    valid: Bool[Tensor, "R L"]
    null_scores: Float[Tensor, "R"]

    @staticmethod
    def same_everywhere(vector: Float[Tensor, "D"], strength: float, *, num_rows: int) -> Decision:
        """Add ``strength * vector`` to every row, without looking at it; strength 0 leaves all alone.

        Args:
            vector: On the device of the states.
            strength: Multiplier.
            num_rows: ``R``.
        """
        strengths = torch.full((num_rows,), float(strength), device=vector.device)
        return Decision.unscored((strength * vector).expand(num_rows, -1), strengths)

    @staticmethod
    def unscored(deltas: Float[Tensor, "R D"], strengths: Float[Tensor, "R"]) -> Decision:
        """Add vectors that are in no basis and were compared with nothing.

        Args:
            deltas: What is added, multiplied already.
            strengths: The multipliers, for the record; a row with 0 is left alone.
        """
        nothing = torch.zeros((len(deltas), 0), device=deltas.device)
        return Decision(
            fires=strengths != 0,
            deltas=deltas,
            chosen=torch.full((len(deltas),), -1, device=deltas.device),
            strengths=strengths,
            candidates=nothing.long(),
            scores=nothing,
            valid=nothing.bool(),
            null_scores=torch.zeros(len(deltas), device=deltas.device),
        )


@dataclass(frozen=True)
class Proposal:
    """Candidates to preview before deciding, and all that the decision then needs.

    Attributes:
        previews: ``Float[R L D]``, what each preview adds.
        deltas: ``Float[R L D]``, what would be added for good.
        candidates: ``Int[R L]``, basis rows.
        strengths: ``Float[R L]``, of ``deltas``.
        scores: ``Float[R L]``, before previews.
        valid: ``Bool[R L]``; a row without a valid candidate is not previewed.
        null_scores: ``Float[R]``, of doing nothing.
    """

    previews: Float[Tensor, "R L D"]
    deltas: Float[Tensor, "R L D"]
    candidates: Int[Tensor, "R L"]
    strengths: Float[Tensor, "R L"]
    scores: Float[Tensor, "R L"]
    valid: Bool[Tensor, "R L"]
    null_scores: Float[Tensor, "R"]


@runtime_checkable
class Controller(Protocol):
    """Decides inside the pass, at no extra pass; keeps nothing from one call to the next.

    Attributes:
        place: When it is asked and at which tokens its vector is added; see `Place`.
        block: The block that it adds to.
        reads: The blocks whose states it is given, ascending; the last is ``block``. ``Float[R W]``
            holds them side by side, so of one that reads its own block alone ``W`` is ``D``. States are
            those before anything is added in that block in the same pass.
    """

    @property
    def place(self) -> Place:
        """When it is asked and at which tokens its vector is added."""
        ...

    @property
    def block(self) -> int:
        """The block that it adds to."""
        ...

    @property
    def reads(self) -> tuple[int, ...]:
        """The blocks that it is shown, ascending; the last is ``block``."""
        ...

    def decide(self, states: Float[Tensor, "R W"], batch: ControlBatch) -> Decision | None:
        """Choose from the states alone; None if it never acts, so that there is nothing to record."""
        ...


@runtime_checkable
class PreviewingController(Controller, Protocol):
    """A controller that may decide after previews of what it proposes; it acts at control points alone."""

    @property
    def preview_tokens(self) -> int:
        """Tokens per preview; 0 means that ``decide`` is called, as for any other controller."""
        ...

    def propose(self, states: Float[Tensor, "R W"], batch: ControlBatch) -> Proposal:
        """Choose up to ``L`` candidates a row to preview, before any of them is decoded."""
        ...

    def commit(self, proposal: Proposal, gains: Float[Tensor, "R L"]) -> Decision:
        """Decide, given each preview's mean token log-probability over the null's."""
        ...


@runtime_checkable
class ReadsUncertainty(Controller, Protocol):
    """A controller that may want to know how uncertain the steps behind it were; it acts at control points."""

    @property
    def reads_uncertainty(self) -> bool:
        """Whether it does."""
        ...


Steering = Controller | Sequence[Controller]
"""A controller, or several that act in the same passes."""


def controllers_of(steering: Steering | None) -> tuple[Controller, ...]:
    """One or several controllers, or none, as a tuple."""
    if steering is None:
        return ()
    return (steering,) if isinstance(steering, Controller) else tuple(steering)


def previewing(steering: Steering | None) -> PreviewingController | None:
    """The first controller that wants to see previews before it decides."""
    for controller in controllers_of(steering):
        if isinstance(controller, PreviewingController) and controller.preview_tokens:
            return controller
    return None


def reads_uncertainty(steering: Steering | None) -> bool:
    """Whether some controller wants to know how uncertain steps were."""
    return any(
        isinstance(controller, ReadsUncertainty) and controller.reads_uncertainty
        for controller in controllers_of(steering)
    )
