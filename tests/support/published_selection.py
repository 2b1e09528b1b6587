"""The obvious selection loop: for every pick, a triangular solve for every candidate left."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def objective(
    keys: Tensor, quality: Tensor, picked: list[int], diversity: float, jitter: float
) -> float:
    """``sum log(1 + quality) + diversity * logdet(G_S + jitter I)``, from its definition."""
    rows = keys[picked].double()
    gram = rows @ rows.T + jitter * torch.eye(len(picked), dtype=torch.double)
    return float(torch.log1p(quality[picked].double()).sum() + diversity * torch.logdet(gram))


def published_greedy(
    keys: Tensor, quality: Tensor, size: int, diversity: float, jitter: float
) -> list[int]:
    """Greedy picks by a Cholesky factor rebuilt with one triangular solve per candidate."""
    keys = keys.double()
    log_quality = torch.log1p(quality.double()).tolist()
    picked: list[int] = []
    factor = torch.zeros(0, 0, dtype=torch.double)
    for _ in range(size):
        best, best_gain, best_row = -1, -math.inf, torch.zeros(0)
        for i in range(len(keys)):
            if i in picked:
                continue
            row, variance = _extend(factor, keys, picked, i, jitter)
            gain = log_quality[i] + diversity * math.log(variance)
            if gain > best_gain:
                best, best_gain, best_row = i, gain, torch.cat([row, torch.tensor([variance**0.5])])
        grown = torch.zeros(len(picked) + 1, len(picked) + 1, dtype=torch.double)
        grown[:-1, :-1], grown[-1] = factor, best_row
        factor = grown
        picked.append(best)
    return picked


def _extend(
    factor: Tensor, keys: Tensor, picked: list[int], i: int, jitter: float
) -> tuple[Tensor, float]:
    diagonal = float(keys[i] @ keys[i]) + jitter
    if not picked:
        return torch.zeros(0, dtype=torch.double), diagonal
    cross = keys[picked] @ keys[i]
    row = torch.linalg.solve_triangular(factor, cross[:, None], upper=False)[:, 0]
    return row, max(diagonal - float(row @ row), 1e-300)
