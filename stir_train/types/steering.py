"""Candidates, the control basis, and the record of a controller's decisions."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Contrasts found by the harvest, one a (prompt, control point).

    Attributes:
        prompt_ids: ``[C]``.
        points: ``Int[C]``, 1-based.
        quality: ``Float[C]``, mean reward of the right rollouts minus that of the wrong ones.
        mean_right, mean_wrong: ``Float[C L D]``, mean states of the two groups.
        blocks: The captured blocks, ``L`` of them.
    """

    prompt_ids: tuple[str, ...]
    points: Int[Tensor, "C"]
    quality: Float[Tensor, "C"]
    mean_right: Float[Tensor, "C L D"]
    mean_wrong: Float[Tensor, "C L D"]
    blocks: tuple[int, ...]

    def __len__(self) -> int:
        """Number of contrasts."""
        return len(self.prompt_ids)


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
        contrast: ``Int[K]``: a correction and its anchor share the contrast they come from.
    """

    keys: Float[Tensor, "K D"]
    directions: Float[Tensor, "K D"]
    blocks: Int[Tensor, "K"]
    points: Int[Tensor, "K"]
    quality: Float[Tensor, "K"]
    is_anchor: Bool[Tensor, "K"]
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
    """What a controller saw and did at one control point of one row.

    Attributes:
        prompt_id, sample, point, token_index: Where.
        block: The steered block.
        candidates: Basis rows considered, best similarity first.
        scores: Their scores, in the units of the controller's mode.
        null_score: The score of doing nothing.
        chosen: Basis row injected, or -1.
        strength: Multiplier injected; 0 when nothing was.
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
