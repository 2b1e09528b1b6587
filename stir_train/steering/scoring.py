"""Retrieval by cosine similarity among the entries of the same control point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.types.steering import ControlBasis


@dataclass(frozen=True)
class Retrieved:
    """The corrections in reach of each row, best affinity first.

    Attributes:
        entries: ``Int[R L]``, basis rows; meaningless where not valid.
        valid: ``Bool[R L]``.
        affinity: ``Float[R L]``, similarity times quality (``A_i``).
        null_affinity: ``Float[R]``, that of the best anchor in reach, 0 without one (``A_null``).
    """

    entries: Int[Tensor, "R L"]
    valid: Bool[Tensor, "R L"]
    affinity: Float[Tensor, "R L"]
    null_affinity: Float[Tensor, "R"]

    def where(self, rows: Bool[Tensor, "R"]) -> Retrieved:
        """The same, with nothing to choose in other rows."""
        return Retrieved(
            self.entries, self.valid & rows[:, None], self.affinity, self.null_affinity
        )

    def repeated(self, times: int) -> Retrieved:
        """Every candidate ``times`` times in a row, to be tried at as many strengths."""
        return Retrieved(
            self.entries.repeat_interleave(times, 1),
            self.valid.repeat_interleave(times, 1),
            self.affinity.repeat_interleave(times, 1),
            self.null_affinity,
        )


class Retriever:
    """Nearest entries of one block's basis."""

    def __init__(self, basis: ControlBasis, *, center_keys: bool, num_nearest: int) -> None:
        """Prepare unit keys; with ``center_keys`` each control point's mean key is subtracted.

        The basis holds at least one entry when it is searched.
        """
        self._basis = basis
        self._num_nearest = num_nearest
        top = int(basis.points.max()) if len(basis) else 0
        self._mean_key = torch.zeros(top + 1, basis.keys.shape[1], device=basis.keys.device)
        if center_keys:
            for point in basis.points.unique().tolist():
                self._mean_key[point] = basis.keys[basis.points == point].mean(0)
        centred = basis.keys - self._mean_key[basis.points] if len(basis) else basis.keys
        self._keys = torch.nn.functional.normalize(centred, dim=-1)

    def retrieve(
        self,
        states: Float[Tensor, "R D"],
        points: Int[Tensor, "R"],
        num_candidates: int,
        *,
        ranking: Float[Tensor, "R K"] | None = None,
    ) -> Retrieved:
        """Take the nearest entries of the same point; split them into corrections and anchors.

        Args:
            states: Queries.
            points: The control point of each.
            num_candidates: Corrections to return per row.
            ranking: What to rank entries by instead of similarity (ablations).
        """
        basis = self._basis
        unit = torch.nn.functional.normalize(states, dim=-1)
        unit = unit - self._mean_key[points.clamp_max(len(self._mean_key) - 1)]
        query = torch.nn.functional.normalize(unit, dim=-1)
        same_point = basis.points[None] == points[:, None]
        similarity = torch.where(same_point, query @ self._keys.T, -torch.inf)
        order_by = similarity if ranking is None else torch.where(same_point, ranking, -torch.inf)
        entries = order_by.topk(min(self._num_nearest, len(basis)), dim=1).indices
        nearest = similarity.gather(1, entries)
        reachable = nearest > -torch.inf
        affinity = torch.where(reachable, nearest * basis.quality[entries], -torch.inf)
        anchors = basis.is_anchor[entries]
        null = torch.where(anchors & reachable, affinity, -torch.inf).max(1).values
        corrections = torch.where(anchors, -torch.inf, affinity)
        best, order = corrections.topk(min(num_candidates, corrections.shape[1]), dim=1)
        return Retrieved(
            entries=entries.gather(1, order),
            valid=best > -torch.inf,
            affinity=best,
            null_affinity=torch.where(null == -torch.inf, 0.0, null),
        )
