"""Candidates, the control basis, and the record of a controller's decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from stir_train.types.places import Place
from stir_train.types.utility import Utility

UNSTEERED = -1
"""Stands for the steered block of a trajectory that nothing steered."""


@runtime_checkable
class Contrasts(Protocol):
    """Contrasts of some rollouts, wherever their states are; `Candidates` says what each field is."""

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """Problem of each contrast, ``[C]``."""
        ...

    @property
    def points(self) -> Int[Tensor, "C"]:
        """Control points, 1-based."""
        ...

    @property
    def quality(self) -> Float[Tensor, "C"]:
        """How much better the better rollouts are."""
        ...

    @property
    def saves_tokens(self) -> Bool[Tensor, "C"]:
        """Whether short is contrasted with long, not right with wrong."""
        ...

    @property
    def blocks(self) -> tuple[int, ...]:
        """The captured blocks."""
        ...

    @property
    def width(self) -> int:
        """``D``, of a state."""
        ...

    def __len__(self) -> int:
        """Number of contrasts."""
        ...

    def means(
        self, block: int, where: Shaped[Tensor, "N"] | None = None
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
        """Mean states of the better and of the worse rollouts in one block.

        Args:
            block: One of ``blocks``.
            where: ``Bool[C]`` mask or ``Int[R]`` rows; None takes all.
        """
        ...


@dataclass(frozen=True)
class Candidates:
    """Contrasts found by the harvest, at most one of each kind a (prompt, control point).

    Right against wrong rollouts, or (``saves_tokens``) short against long ones that are all right;
    "right" and "wrong" below stand for the better and the worse of either kind.

    Attributes:
        prompt_ids: ``[C]``.
        points: ``Int[C]``, 1-based.
        quality: ``Float[C]``, mean reward of the right rollouts minus that of the wrong ones.
        mean_right, mean_wrong: ``Float[C L D]``, mean states of the two groups.
        saves_tokens: ``Bool[C]``, short against long; its quality is the share of tokens saved.
        blocks: The captured blocks, ``L`` of them.
    """

    prompt_ids: tuple[str, ...]
    points: Int[Tensor, "C"]
    quality: Float[Tensor, "C"]
    mean_right: Float[Tensor, "C L D"]
    mean_wrong: Float[Tensor, "C L D"]
    saves_tokens: Bool[Tensor, "C"]
    blocks: tuple[int, ...]

    def __len__(self) -> int:
        """Number of contrasts."""
        return len(self.prompt_ids)

    @property
    def width(self) -> int:
        """``D``, of a state."""
        return self.mean_right.shape[2]

    def means(
        self, block: int, where: Shaped[Tensor, "N"] | None = None
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
        """Mean states of the better and of the worse rollouts in one block, all or ``where``."""
        layer = self.blocks.index(block)
        chosen = slice(None) if where is None else where
        return self.mean_right[chosen, layer], self.mean_wrong[chosen, layer]

    def select(self, index: Bool[Tensor, "C"]) -> Candidates:
        """The contrasts under a mask."""
        kept = index.tolist()
        return Candidates(
            prompt_ids=tuple(p for p, keep in zip(self.prompt_ids, kept, strict=True) if keep),
            points=self.points[index],
            quality=self.quality[index],
            mean_right=self.mean_right[index],
            mean_wrong=self.mean_wrong[index],
            saves_tokens=self.saves_tokens[index],
            blocks=self.blocks,
        )

    @staticmethod
    def concatenate(parts: Sequence[Candidates]) -> Candidates:
        """Join contrasts of the same blocks, in order."""
        return Candidates(
            prompt_ids=tuple(i for part in parts for i in part.prompt_ids),
            points=torch.cat([part.points for part in parts]),
            quality=torch.cat([part.quality for part in parts]),
            mean_right=torch.cat([part.mean_right for part in parts]),
            mean_wrong=torch.cat([part.mean_wrong for part in parts]),
            saves_tokens=torch.cat([part.saves_tokens for part in parts]),
            blocks=parts[0].blocks,
        )


@dataclass(frozen=True)
class ControlBasis:
    """The selected corrections and anchors, over all captured blocks.

    An anchor is a state of right rollouts ("already on a good path"); its direction is zero.

    Attributes:
        keys: ``Float[K D]``, unit norm.
        directions: ``Float[K D]``.
        blocks, points: ``Int[K]``: where an entry may be used; points are 1-based.
        quality: ``Float[K]``.
        is_anchor: ``Bool[K]``.
        saves_tokens: ``Bool[K]``: from short against long right rollouts, not right against wrong.
        contrast: ``Int[K]``: a correction and its anchor share the contrast they come from.
    """

    keys: Float[Tensor, "K D"]
    directions: Float[Tensor, "K D"]
    blocks: Int[Tensor, "K"]
    points: Int[Tensor, "K"]
    quality: Float[Tensor, "K"]
    is_anchor: Bool[Tensor, "K"]
    saves_tokens: Bool[Tensor, "K"]
    contrast: Int[Tensor, "K"]

    def __post_init__(self) -> None:
        """Check shapes.

        Raises:
            ValueError: If the fields disagree on the number of entries or the width.
        """
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a basis needs fields of one length, got {lengths}")
        if self.keys.shape != self.directions.shape:
            raise ValueError(
                f"keys {tuple(self.keys.shape)} and directions {tuple(self.directions.shape)} differ"
            )

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.keys)

    def select(self, index: Tensor) -> ControlBasis:
        """The entries at ``index`` (integers or a mask)."""
        return ControlBasis(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def concatenate(parts: list[ControlBasis]) -> ControlBasis:
        """Join bases, in order."""
        return ControlBasis(
            **{
                f.name: torch.cat([getattr(part, f.name) for part in parts])
                for f in fields(ControlBasis)
            }
        )


@dataclass(frozen=True)
class SteeringDecision:
    """What a controller saw and did at one control point of one row; point 0 is the prompt's end.

    Attributes:
        prompt_id, sample, point, token_index: Where.
        block: The steered block.
        candidates: Basis rows considered, best similarity first.
        scores: Their scores, in the units of the controller's mode.
        null_score: The score of doing nothing.
        chosen: Basis row injected, or -1.
        strength: Multiplier injected; 0 when nothing was.
        place: At which tokens from there on.
    """

    prompt_id: str
    sample: int
    point: int
    token_index: int
    block: int
    candidates: tuple[int, ...]
    scores: tuple[float, ...]
    null_score: float
    chosen: int
    strength: float
    place: Place = "control_point"


@dataclass(frozen=True)
class PlannedTrial:
    """One intervention to make, and the probability that the plan had for it at its state."""

    state: int
    block: int
    entry: int
    strength: float
    propensity: float


@dataclass(frozen=True)
class Intervention:
    """One paired replay: a greedy completion continued from a control point with an impulse.

    Attributes:
        prompt_id: Which problem; the rollout is its greedy one.
        state: Row of the pool of states that trials start from.
        point, token_index: The control point.
        block, entry, strength: What was injected there.
        propensity: The probability that this entry and strength had at this state.
        improvable: Whether the greedy completion was wrong, or right but long.
        correct, tokens: The outcome with the impulse; tokens are of the whole completion.
        null_correct, null_tokens: The outcome without it.
    """

    prompt_id: str
    state: int
    point: int
    token_index: int
    block: int
    entry: int
    strength: float
    propensity: float
    improvable: bool
    correct: bool
    tokens: int
    null_correct: bool
    null_tokens: int

    def uplift(self, utility: Utility) -> float:
        """Utility with the impulse less that without it."""
        gained = float(self.correct) - float(self.null_correct)
        return utility.of(gained, float(self.tokens - self.null_tokens))
