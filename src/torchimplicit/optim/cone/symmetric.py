"""Projections onto second-order and semidefinite cones, in the vectors that conic solvers use."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.optim.projection.cones import onto_second_order_cone, onto_semidefinite_cone


def project_second_order(v: Tensor) -> Tensor:
    r"""The nearest points with $|x| \le t$ for rows $(t, x)$ of `v`, `(..., n)`."""
    return onto_second_order_cone(v)[0]


def project_semidefinite(v: Tensor, order: int) -> Tensor:
    """The nearest positive semidefinite matrices, for scaled triangles `(..., order (order + 1) / 2)`; see `Cones`."""
    return to_triangle(onto_semidefinite_cone(to_matrix(v, order))[0])


def to_matrix(v: Tensor, order: int) -> Tensor:
    """The symmetric matrices `(..., order, order)` of scaled triangles."""
    rows, columns = torch.tril_indices(order, order, device=v.device)  # the upper triangle, column by column, mirrored
    place = torch.zeros(order, order, dtype=torch.long, device=v.device)
    place[rows, columns] = place[columns, rows] = torch.arange(len(rows), device=v.device)
    scale = torch.full((order, order), 0.5**0.5, dtype=v.dtype, device=v.device).fill_diagonal_(1)
    return v[..., place] * scale


def to_triangle(matrix: Tensor) -> Tensor:
    """The scaled triangles of symmetric matrices `(..., order, order)`."""
    rows, columns = torch.tril_indices(matrix.shape[-1], matrix.shape[-1], device=matrix.device)
    entries = matrix[..., rows, columns]
    return torch.where(rows == columns, entries, 2**0.5 * entries)
