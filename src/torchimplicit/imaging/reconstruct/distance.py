"""How far an answer is from the solution: a Newton step from it, whose length is estimated by a few products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchimplicit.core.problem import FixedPoint
from torchimplicit.core.tree import Layout, norm
from torchimplicit.imaging.reconstruct.cell import Cell
from torchimplicit.linear import GMRES, Jacobian, Tridiagonal, lanczos
from torchimplicit.linear.solver import Product
from torchimplicit.solve import PreparedMap

SEEN = 0.1  # the smallest eigenvalue that matters is taken to be at least this part of the smallest Ritz value


def symmetric_distance(
    jacobian: Jacobian, residual: Tensor, least: Tensor, products: int, seen: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Bounds of $|B^{-1} r|$ from below and above, for a symmetric $B$ with no eigenvalue below `least`.

    The Lanczos process from $r$ gives $k$-point Gauss quadrature of $r^\top B^{-2} r$, and with one node more at the
    lower bound of the spectrum the Gauss-Radau rule. The derivatives of $\lambda^{-2}$ of even order are positive,
    those of odd order negative: the first comes out too small, the second too large. By how much too large depends on
    `least`, which may be far below any eigenvalue that the residual has a part of. With `seen` that part of the
    process's smallest Ritz value takes its place where it is larger: the upper bound becomes an estimate, and a close
    one.

    Source: G. Golub, G. Meurant, Matrices, Moments and Quadrature with Applications, 2010, chapter 6.

    Args:
        jacobian: $B$.
        residual: $r$, `(B, n)`.
        least: `(B,)`, > 0.
        products: Lanczos steps.
        seen: part of the smallest Ritz value, in [0, 1); 0 for a bound.

    Returns:
        Both bounds, `(B,)` each.
    """
    found = lanczos(jacobian.rmatvec, residual, min(products, residual.shape[1]))
    lower, upper = (norm(rule) for rule in _rules(found, least.double(), seen))
    size = norm(residual)
    return (size * lower).to(size), (size * torch.maximum(upper, lower)).to(size)


def inverse_form(product: Product, residual: Tensor, least: Tensor, products: int) -> Tensor:
    r"""A bound of $r^\top B^{-1} r$ from above, for a symmetric $B$ with no eigenvalue below `least`, `(B,)`, float64.

    The Gauss-Radau rule of `symmetric_distance`, for $1 / \lambda$, whose derivatives have the same signs.

    Args:
        product: with $B$, of rows `(B, n)`.
        residual: $r$, `(B, n)`.
        least: `(B,)`, > 0.
        products: Lanczos steps.
    """
    found = lanczos(product, residual, min(products, residual.shape[1]))
    return norm(residual).double().square() * _rules(found, least.double())[1][:, 0]


def _rules(found: Tridiagonal, least: Tensor, seen: float = 0.0) -> tuple[Tensor, Tensor]:
    """First columns of the inverses of the Gauss rule's matrix and of the Gauss-Radau rule's, `(B, k)` and `k + 1`."""
    matrix, last = found.matrix.double(), found.sides[:, -1].double()
    # Where the process has ended early the rest of the matrix is zero, and coupled to nothing.
    empty = torch.diag_embed(((found.middle == 0) & (matrix.abs().sum(2) == 0)).double())
    first = torch.zeros_like(matrix[:, :, :1])
    first[:, 0] = 1
    lower = torch.linalg.solve(matrix + empty, first)
    if seen:
        least = torch.maximum(least, seen * torch.linalg.eigvalsh(matrix + empty)[:, 0])
    shifted = (
        matrix + empty - least[:, None, None] * torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    )
    corner = torch.linalg.solve(shifted, first.flip(1)).squeeze(2)[:, -1] * last.square() + least
    wide = matrix.new_zeros(len(matrix), matrix.shape[1] + 1, matrix.shape[1] + 1)
    wide[:, :-1, :-1], wide[:, -1, -1] = matrix + empty, corner
    wide[:, -1, -2] = wide[:, -2, -1] = last
    upper = torch.linalg.solve(wide, F.pad(first, (0, 0, 0, 1)))
    return lower.squeeze(2), upper.squeeze(2)


def general_step(jacobian: Jacobian, residual: Tensor, products: int) -> tuple[Tensor, Tensor]:
    r"""An estimate of $B^{-1} r$ for any $B$, by `GMRES`: what it finds, `(B, n)`, and by how much it is too short.

    Of what it leaves of the residual the rest of the way is as long for its size as what was found; `(B,)`, >= 1.
    """
    step, report = GMRES(rtol=1e-2, restart=products, max_steps=products).prepare(jacobian).solve(residual)
    rest = report.residual * residual.shape[1] ** 0.5
    solved = (norm(residual) - rest).clamp_min(torch.finfo(rest.dtype).tiny)
    nothing = ~step.any(1)  # was found: the residual itself then stands for the step
    step = torch.where(nothing[:, None], residual, step)
    return step, torch.where(nothing, 1.0, 1 + rest / solved)


@torch.no_grad()
def distances(cell: Any, z: Any, args: tuple, products: int) -> Tensor:
    """The estimated RMS distance of images to those of the fixed points, `(B,)`; infinite where it is not finite.

    Args:
        cell: the cell.
        z: the states, of which the images are `cell.output`, where it has one.
        args: the measurement, the operator, and what else the cell takes.
        products: with the Jacobian.
    """
    begun: Any = cell.begin(z, args, 1) if isinstance(cell, PreparedMap) else cell
    problem = FixedPoint(begun, z, args, begins=False)
    with problem.bind([tensor.detach() for tensor in problem.explicit.take_tensors()]) as function:
        layout, flat = problem.layout, problem.layout.flatten(z)
        jacobian = Jacobian(function, flat)
        residual = jacobian.value.detach()
        if isinstance(cell, Cell) and cell.symmetric:
            least = (1 - torch.as_tensor(begun.contraction(args[1], z), dtype=flat.dtype, device=flat.device)).expand(
                len(flat)
            )
            found = symmetric_distance(jacobian, residual, least, products, SEEN)[1] / layout.width**0.5
        else:
            step, short = general_step(jacobian, residual, products)
            images = [layout.unflatten(each) for each in (flat, flat - step)]
            if isinstance(cell, Cell):
                images = [begun.output(each, *args) for each in images]
            found = short * rms(Layout(images[0]), images)
    return torch.where(found.isfinite(), found, torch.inf)


def rms(layout: Layout, images: list) -> Tensor:
    """Of the difference of two batches, `(B,)`."""
    one, other = map(layout.flatten, images)
    return norm(one - other) / layout.width**0.5
