"""Residual states at control points, labelled row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class StateLabel:
    """Where one captured row comes from.

    Attributes:
        prompt_id, sample: The rollout.
        point: Control point, 1-based: the state after ``point`` segments.
        token_index: Index of the control-point token in the completion.
        token_id: That token.
    """

    prompt_id: str
    sample: int
    point: int
    token_index: int
    token_id: int


@dataclass(frozen=True)
class CapturedStates:
    """States of many rollouts at their control points.

    Attributes:
        labels: One label a row.
        blocks: The captured decoder blocks, 0-based, ascending.
        states: ``Float[R L D]``: row, captured block, residual width.
    """

    labels: tuple[StateLabel, ...]
    blocks: tuple[int, ...]
    states: Float[Tensor, "R L D"]

    def __post_init__(self) -> None:
        """Check that labels, blocks and states agree.

        Raises:
            ValueError: If they do not.
        """
        expected = (len(self.labels), len(self.blocks))
        if tuple(self.states.shape[:2]) != expected:
            raise ValueError(
                f"states have shape {tuple(self.states.shape)}, labels and blocks say {expected}"
            )

    @staticmethod
    def concatenate(parts: Sequence[CapturedStates]) -> CapturedStates:
        """Join states of the same blocks, in order."""
        labels = tuple(label for part in parts for label in part.labels)
        return CapturedStates(labels, parts[0].blocks, torch.cat([part.states for part in parts]))

    def at_block(self, block: int) -> Float[Tensor, "R D"]:
        """The states of one block.

        Raises:
            ValueError: If the block was not captured.
        """
        if block not in self.blocks:
            raise ValueError(f"block {block} was not captured; captured: {self.blocks}")
        return self.states[:, self.blocks.index(block)]

    def side_by_side(self, blocks: Sequence[int]) -> Float[Tensor, "R W"]:
        """The states of several blocks, ``W`` the residual width times their number.

        Raises:
            ValueError: If one was not captured.
        """
        return torch.cat([self.at_block(block) for block in blocks], dim=1)
