"""Whether a stationary point is a minimum, as far as a few products with the Hessian tell."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.problem import Residual
from torchimplicit.core.status import Status
from torchimplicit.linear import Jacobian, eigenvalue_range, probe
from torchimplicit.solve import Result
from torchimplicit.solve.units import units_of

PRODUCTS = 16  # with the Hessian, where there are too many unknowns to know it: a sample of its directions


def check_minimum(residual: Residual, result: Result, constraints: int = 0) -> None:
    r"""Gives stationary points that are no minima their status, in the report.

    The Hessian's smallest eigenvalue must not be clearly negative: not below $-\sqrt\epsilon$ times the largest, in
    units of the unknowns in which its rows are of one size. Up to 256 unknowns the loop knows the Hessian; beyond, a
    Lanczos process looks at it, in the given units. With constraints, on the tangents of their set alone: the last
    unknowns are the multipliers, the Hessian is that of the Lagrangian.

    Args:
        residual: the gradient.
        result: where the loop ended.
        constraints: how many of the unknowns are multipliers.
    """
    report = result.report
    arrived = report.status == Status.CONVERGED
    width = result.z.shape[1] - constraints
    # Inside a transform a plain derivative cannot be taken of what the transform holds.
    if transforms.active() or width <= 0 or not bool(arrived.any()):
        return
    with torch.no_grad():
        if result.jacobian is not None:
            lowest, highest = _extremes(result.jacobian.nan_to_num(0, 0, 0), width)
        else:
            lowest, highest = _estimates(Jacobian(residual.look, result.z), result.z, width)
    falls = lowest < -(residual.eps**0.5) * torch.maximum(lowest.abs(), highest.abs())
    report.status = Status.SADDLE.where(arrived & falls, report.status)
    report.nfev = residual.nfev


def _extremes(hessian: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The outermost eigenvalues `(B,)` of matrices `(B, n, n)` in fitting units, or of their first part on tangents."""
    constraints, matrix = hessian.shape[1] - width, hessian[:, :width, :width]
    if constraints:  # tangents are what they are in the given units
        basis = _normals(hessian[:, width:, :width])
        matrix = matrix - torch.bmm(basis, torch.bmm(basis.mT, matrix))
        matrix = matrix - torch.bmm(torch.bmm(matrix, basis), basis.mT)
    else:
        units = units_of(matrix)
        matrix = matrix * units.unsqueeze(1) * units.unsqueeze(2)
    values = torch.linalg.eigvalsh(matrix)
    return values[:, 0], values[:, -1]


def _normals(jacobian: Tensor) -> Tensor:
    """An orthonormal basis `(B, n, p)` of the directions along which constraints change, by their `(B, p, n)`."""
    return torch.linalg.qr(jacobian.nan_to_num().mT)[0]


def _estimates(hessian: Jacobian, z: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The same, estimated by a Lanczos process."""
    start, constraints, basis = probe(z[:, :width]), z.shape[1] - width, None
    if constraints:
        rows = torch.eye(constraints, dtype=z.dtype, device=z.device)
        rows = torch.nn.functional.pad(rows, (width, 0))
        basis = _normals(torch.vmap(lambda row: hessian.rmatvec(row.expand_as(z)), out_dims=1)(rows)[:, :, :width])

    def tangent(v: Tensor) -> Tensor:
        return v if basis is None else v - torch.bmm(basis, torch.bmm(basis.mT, v.unsqueeze(2))).squeeze(2)

    def product(v: Tensor) -> Tensor:
        return tangent(hessian.rmatvec(torch.nn.functional.pad(v, (0, constraints)))[:, :width])

    lowest, highest, _ = eigenvalue_range(product, tangent(start), min(PRODUCTS, max(width - constraints, 1)))
    return lowest, highest
