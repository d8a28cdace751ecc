r"""What Anderson acceleration makes of past residuals, written for compilers: few operations, and no call of a library.

The same weights as in `history`, $\alpha = M^{-1} 1 / (1^\top M^{-1} 1)$. Rows and columns of the Gram matrix are
divided by the norms of the residuals, so that its diagonal is that of the ridge alone, and elimination (Gauss-Jordan's)
looks for no pivots: what the ridge has made positive needs none. The batch comes last, so that every operation is one
loop over samples for each entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def combined(residuals: Sequence[Tensor], targets: Sequence[Tensor], known: Tensor, ridge: float) -> Tensor:
    """The weighted sum of the targets whose weighted sum of residuals is smallest, `(B, n)`.

    Args:
        residuals: of the past iterates, `(B, n)` each.
        targets: of the same, `(B, n)` each.
        known: 1 for those that are there at all, 0 for others, `(window,)`.
        ridge: see `Anderson`.
    """
    info = torch.finfo(known.dtype)
    stacked = torch.stack(tuple(residuals))
    gram = (stacked.unsqueeze(0) * stacked.unsqueeze(1)).sum(3)
    size = (stacked * stacked).sum(2)
    unit = (size + info.tiny).rsqrt() * known.unsqueeze(1)
    same = torch.eye(len(known), dtype=torch.bool, device=known.device).unsqueeze(2)
    matrix = torch.where(same, 1 + max(ridge, 10 * info.eps), gram * unit.unsqueeze(0) * unit.unsqueeze(1))
    weights = unit * _solved(matrix, unit, info.eps)
    weights = weights / weights.sum(0)
    combination = weights[0].unsqueeze(1) * targets[0]
    for weight, target in zip(weights[1:], targets[1:], strict=True):
        combination = combination + weight.unsqueeze(1) * target
    return combination


def _solved(matrix: Tensor, right: Tensor, least: float) -> Tensor:
    """The solutions `(m, B)` of positive systems `(m, m, B)`; pivots are taken to be `least` at least."""
    size = len(matrix)
    places = torch.arange(size, device=matrix.device).unsqueeze(1)
    rows = torch.cat([matrix, right.unsqueeze(1)], 1)
    for k in range(size):
        row = rows[k] / rows[k, k].clamp_min(least)
        rows = torch.where(places.unsqueeze(1) == k, row, rows - rows[:, k].unsqueeze(1) * row)
    return rows[:, size]
