r"""How far the Newton step from an iterate still goes, unknown by unknown: what a root or a minimum is recognised by.

With the residual $r$ and its Jacobian $J$ the step is $d = -J^{-1} r$. It does not change when residuals, equations or
energies are scaled, and scales with every unknown: no choice of units enters. So an iterate is one of

    |d_j| <= atol + rtol (|z_j| + what counts as zero),

for every unknown $j$. As zero counts a part $\sqrt\epsilon$ of what would change some equation by the size of its
terms, $\min_k \sum_l |J_{kl} z_l| / |J_{kj}|$, and a rounding of the largest value that the unknown has had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.problem import Residual, Slope
from torchimplicit.core.tree import norm
from torchimplicit.linear import CG, GMRES, Jacobian, LinearOperator

DENSE = 256  # unknowns per sample up to which the Jacobian is built and factored
NOISE = 10.0  # roundings of its terms by which a residual may be wrong
ROUGH, PRODUCTS = 0.1, 100  # beyond: the relative residual to which the step is solved for, within so many products
UNEXPLAINED = 1e-3  # part of a residual that a solve may leave; by more a Jacobian counts as singular


class Ahead(NamedTuple):
    """What lies ahead of every sample's iterate.

    Attributes:
        excess: the largest of the step's components, in units of what is allowed; infinite where there is no step,
            `(B,)`.
        settled: whether the step is no longer than rounding makes it, `(B,)` bool.
        blind: unknowns that the residual does not depend on, `(B, n)` bool.
        singular: whether the residual does not change along some direction, `(B,)` bool.
        finite: whether the energy, if there is one, is finite, `(B,)` bool.
    """

    excess: Tensor
    settled: Tensor
    blind: Tensor
    singular: Tensor
    finite: Tensor


def look_ahead(problem: Residual, z: Tensor, largest: Tensor, fallen: Tensor, rtol: float, atol: float) -> Ahead:
    """The Newton step from `z`, judged.

    Args:
        problem: the residual.
        z: the iterates, `(B, n)`.
        largest: the largest size that each unknown has had, `(B, n)`.
        fallen: samples whose residual has fallen by more than a rounding of what it was, `(B,)` bool: where the
            unknowns still move then, it is the function that has become flat.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """
    with torch.no_grad():
        z = z.detach()
        operator = _Transformed(problem.look, z) if transforms.active() else Jacobian(problem.look, z)
        residual, eps = operator.value.detach(), problem.eps
        energy = problem.energy if isinstance(problem, Slope) else None
        dense = z.shape[1] <= DENSE
        size = z.abs() + eps * largest
        if dense:
            step, size, noise, blind, singular = _exact(problem, operator, residual, z, size, energy)
        else:
            step, size, noise, blind = _rough(problem, operator, residual, z, size)
            singular = torch.zeros_like(fallen)
        tolerance = atol + rtol * size
        excess = (step.abs() / tolerance.clamp_min(torch.finfo(z.dtype).tiny)).nan_to_num(torch.inf).amax(1)
        part = (step.abs() / size).nan_to_num(0.0).amax(1)
        excess = torch.where(fallen & (part > eps**0.5), torch.inf, excess)
        settled = step.abs() <= torch.maximum(tolerance, torch.minimum(noise, eps**0.5 * size))
        finite = torch.ones_like(fallen) if energy is None else energy.isfinite()
        return Ahead(excess, settled.all(1) & excess.isfinite() & finite, blind, singular, finite)


def _exact(
    problem: Residual,
    operator: Jacobian | _Transformed,
    residual: Tensor,
    z: Tensor,
    size: Tensor,
    energy: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The step, the unknowns' sizes, how wrong rounding may make the step, who has no influence, `(B, n)` each.

    And whether the Jacobian is singular, `(B,)`.
    """
    basis = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    matrix = torch.vmap(lambda row: operator.rmatvec(row.expand(z.shape)), out_dims=1)(basis)
    weight = matrix.abs()
    terms = torch.bmm(weight, z.abs().unsqueeze(2)).squeeze(2)
    influence = (weight / terms.unsqueeze(2)).nan_to_num(0.0, torch.inf).amax(1)
    size = size + problem.eps**0.5 / influence
    noise = terms
    # That of a gradient: an energy is a sum of squares, or as if it were one.
    slopes = torch.zeros_like(terms)
    if energy is not None:
        slopes = (2 * energy.abs().unsqueeze(1) * matrix.diagonal(dim1=1, dim2=2).abs()).sqrt()
        noise = slopes if getattr(problem, "terms", None) is not None else slopes + terms
    step, inverse, singular = newton_step(matrix, residual, NOISE * problem.eps * slopes)
    noise = NOISE * problem.eps * torch.bmm(inverse.abs(), noise.unsqueeze(2)).squeeze(2)
    return step, size, noise, (weight == 0).all(1), singular


def _rough(
    problem: Residual, operator: Jacobian | _Transformed, residual: Tensor, z: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for many unknowns: roughly, and with one size for all of a sample's."""
    if isinstance(problem, Slope):
        result = CG(rtol=ROUGH, max_steps=PRODUCTS).prepare(_Symmetric(operator)).solve(residual)
    else:
        result = GMRES(rtol=ROUGH, max_steps=PRODUCTS).prepare(operator).solve(residual)
    root = z.shape[1] ** 0.5
    solved = result.report.status == 0
    step = torch.where(solved, norm(result.x) / root, torch.nan).unsqueeze(1)
    size = norm(size).unsqueeze(1) / root
    return step, size, NOISE * problem.eps * size, torch.zeros_like(z, dtype=torch.bool)


def newton_step(matrix: Tensor, residual: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The solution of `J d = -r`, the inverse of `J`, and whether that is singular, for matrices of any scaling.

    Where `J` is singular they are the shortest solution in equilibrated unknowns and the pseudo-inverse, if the
    residual has an answer: no slope along a flat direction but by rounding. Else the solution is NaN.

    Args:
        matrix: `J`, `(B, n, n)`.
        residual: `r`, `(B, n)`.
        noise: how wrong it may be, `(B, n)`.
    """
    finite = matrix.isfinite().all(2).all(1) & residual.isfinite().all(1)
    columns = _units(matrix.abs().amax(1)).unsqueeze(1)
    scaled = torch.where(finite[:, None, None], matrix / columns, 0.0)
    rows = _units(scaled.abs().amax(2)).unsqueeze(2)
    scaled, right = scaled / rows, (residual.unsqueeze(2) / rows).nan_to_num(0.0, 0.0, 0.0)
    inverse, failure = torch.linalg.inv_ex(scaled)
    step = torch.bmm(inverse, right)
    left = norm((right - torch.bmm(scaled, step)).squeeze(2))
    allowed = UNEXPLAINED * norm(right.squeeze(2))
    bad = (failure != 0) | ~(left <= allowed)
    if bool(bad.any()):
        some = torch.nonzero(bad).flatten()
        shortest = torch.linalg.pinv(scaled[some], rtol=matrix.shape[1] * NOISE * torch.finfo(matrix.dtype).eps)
        inverse = inverse.index_copy(0, some, shortest)
        short = torch.bmm(shortest, right[some])
        short = short + torch.bmm(shortest, right[some] - torch.bmm(scaled[some], short))  # what rounding has left
        step = step.index_copy(0, some, short)
        left = norm((right - torch.bmm(scaled, step)).squeeze(2))
        slight = torch.finfo(matrix.dtype).eps ** 0.5 * norm(right.squeeze(2)) + norm(noise / rows.squeeze(2))
        allowed = torch.where(bad, slight, allowed)
    answered = finite & (left <= allowed)
    step = torch.where(answered.unsqueeze(1), -(step / columns.mT).squeeze(2), torch.nan)
    return step, inverse / columns.mT / rows.mT, bad


def _units(size: Tensor) -> Tensor:
    return torch.where((size > 0) & size.isfinite(), size, 1.0)


class _Symmetric(LinearOperator):
    """The Hessian, by products with its transpose, which are the cheaper ones."""

    def __init__(self, operator: LinearOperator):
        self.matvec = self.rmatvec = operator.rmatvec


class _Transformed(LinearOperator):
    """The Jacobian inside a transform of `torch.func`, which plain derivatives do not reach into."""

    def __init__(self, function: Callable[[Tensor], Tensor], z: Tensor):
        self.value, self.back, *_ = torch.func.vjp(function, z)

    def rmatvec(self, v: Tensor) -> Tensor:
        return self.back(v)[0]

    def matvec(self, v: Tensor) -> Tensor:
        return torch.func.vjp(self.rmatvec, torch.zeros_like(self.value))[1](v)[0]
