"""Whether a stationary point is a minimum, as far as a few products with the Hessian tell."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.problem import Residual
from torchimplicit.core.status import Status
from torchimplicit.linear import Jacobian, eigenvalue_range, probe
from torchimplicit.solve import DENSE, Result
from torchimplicit.solve.units import units_of

PRODUCTS = 16  # with the Hessian: exact for as many unknowns, a sample of its directions beyond


def check_minimum(residual: Residual, result: Result, constraints: int = 0) -> None:
    r"""Gives stationary points that are no minima their status, in the report.

    The Hessian's smallest eigenvalue, by a Lanczos process, must not be clearly negative: not below $-\sqrt\epsilon$
    times the largest, in units of the unknowns in which its rows are of one size (up to 256 unknowns). With
    constraints, on the tangents of their set alone: the last unknowns are the multipliers, the
    Hessian is that of the Lagrangian.

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
        hessian, start = Jacobian(residual.look, result.z), probe(result.z[:, :width])
        units = _units(hessian, result.z, constraints)
        tangents = _tangents(hessian, result.z, constraints) if constraints else None

        def product(v: Tensor) -> Tensor:
            image = units * hessian.rmatvec(torch.nn.functional.pad(units * v, (0, constraints)))[:, :width]
            return image if tangents is None else tangents(image)

        start = start if tangents is None else tangents(start)
        lowest, highest, _ = eigenvalue_range(product, start, min(PRODUCTS, max(width - constraints, 1)))
    falls = lowest < -(residual.eps**0.5) * torch.maximum(lowest.abs(), highest.abs())
    report.status = torch.where(arrived & falls, int(Status.SADDLE), report.status)
    report.nfev = residual.nfev


def _units(hessian: Jacobian, z: Tensor, constraints: int) -> Tensor:
    """Units of the unknowns in which no row of the Hessian stands out, whatever units they have, `(B, n)`."""
    if constraints or z.shape[1] > DENSE:  # tangents are what they are in the given units; too many to look at each
        return torch.ones_like(z[:, : z.shape[1] - constraints])
    return units_of(hessian.dense(z))


def _tangents(hessian: Jacobian, z: Tensor, constraints: int):
    """The projection onto the directions along which no constraint changes to first order."""
    rows = torch.eye(constraints, dtype=z.dtype, device=z.device)
    rows = torch.nn.functional.pad(rows, (z.shape[1] - constraints, 0))
    jacobian = torch.vmap(lambda row: hessian.rmatvec(row.expand_as(z)), out_dims=1)(rows)[:, :, :-constraints]
    basis = torch.linalg.qr(jacobian.nan_to_num().mT)[0]  # (B, n, p)

    def project(v: Tensor) -> Tensor:
        return v - torch.bmm(basis, torch.bmm(basis.mT, v.unsqueeze(2))).squeeze(2)

    return project
