r"""How far the Newton step from an iterate still goes, unknown by unknown: what a root or a minimum is recognised by.

With the residual $r$ and its Jacobian $J$ the step is $d = -J^{-1} r$. It does not change when residuals, equations or
energies are scaled, and scales with every unknown: no choice of units enters. So an iterate is one of

    |d_j| <= atol + rtol (|z_j| + what counts as zero),

for every unknown $j$. As zero counts a part $\sqrt\epsilon$ of what would change some equation by the size of its
terms, $\min_k \sum_l |J_{kl} z_l| / |J_{kj}|$, and a rounding of the largest value that the unknown has had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.core.problem import Residual, Slope
from torchimplicit.core.tree import norm
from torchimplicit.linear import CG, GMRES, Jacobian, LinearOperator
from torchimplicit.solve.look import Claim

DENSE = 256  # unknowns per sample up to which the Jacobian is built and factored
NOISE = 10.0  # roundings of its terms by which a residual may be wrong
ROUGH, PRODUCTS = 0.1, 100  # beyond: the relative residual to which the step is solved for, within so many products
UNEXPLAINED = 1e-3  # part of a residual that a solve may leave; by more a Jacobian counts as singular


class Ahead(NamedTuple):
    """What lies ahead of every sample's iterate.

    Attributes:
        excess: the largest of the step's components, in units of what is allowed; infinite where there is no step,
            `(B,)`.
        settled: whether the step is no longer than rounding makes it, `(B,)` bool; false where that was not asked for.
        blind: unknowns that the residual does not depend on, `(B, n)` bool; None where no Jacobian is singular.
        faint: unknowns whose whole size changes no residual by more than a rounding of what it has been, the same.
        singular: whether the residual is zero or does not change along some direction, `(B,)` bool; None where none is.
        finite: whether the energy, if there is one, is finite, `(B,)` bool.
        jacobian: of an energy's gradient, `(B, n, n)`; None where there are too many unknowns to build it.
    """

    excess: Tensor
    settled: Tensor
    blind: Tensor | None
    faint: Tensor | None
    singular: Tensor | None
    finite: Tensor
    jacobian: Tensor | None


class Step(NamedTuple):
    """A Newton step, the unknowns' sizes, and how wrong rounding may make the step, `(B, n)` each; see `Ahead`."""

    step: Tensor
    size: Tensor
    noise: Tensor | None
    jacobian: Tensor | None = None
    blind: Tensor | None = None
    faint: Tensor | None = None
    singular: Tensor | None = None


@dataclass(frozen=True)
class View:
    """What a Newton step is made of.

    Attributes:
        problem: the residual.
        operator: its Jacobian at the iterates.
        residual: its value there, `(B, n)`.
        z: the iterates, `(B, n)`.
        size: sizes of the unknowns, `(B, n)`.
        highest: the largest size that each residual has had, `(B, n)`.
        noisy: whether to find out how wrong rounding makes the step.
    """

    problem: Residual
    operator: Jacobian | _Transformed
    residual: Tensor
    z: Tensor
    size: Tensor
    highest: Tensor
    noisy: bool


def look_ahead(problem: Residual, claim: Claim, rtol: float, atol: float, noisy: bool = True) -> Ahead:
    """The Newton steps from iterates, judged.

    Args:
        problem: the residual.
        claim: the iterates; a step of the solve from these very ones may take the Jacobian over.
        rtol: relative tolerance.
        atol: absolute tolerance.
        noisy: whether to find out which steps are `settled`.
    """
    with torch.no_grad():
        z, eps = claim.z.detach(), problem.eps
        operator = _linearised(problem, claim.z)
        energy = problem.energy if isinstance(problem, Slope) else None
        size = torch.add(z.abs(), claim.largest, alpha=eps)
        view = View(problem, operator, operator.value.detach(), z, size, claim.highest, noisy)
        step, size, noise, jacobian, blind, faint, singular = (_exact if z.shape[1] <= DENSE else _rough)(view)
        step, tolerance = step.abs(), atol + rtol * size
        excess = (step / tolerance.clamp_min(torch.finfo(z.dtype).tiny)).nan_to_num(torch.inf).amax(1)
        # Where a residual has fallen by all but rounding and unknowns still move, the function has become flat.
        fallen = (claim.residual.abs() <= eps * claim.highest).all(1)
        part = (step / size).nan_to_num(0.0).amax(1)
        excess = torch.where(fallen & (part > eps**0.5), torch.inf, excess)
        finite, settled = torch.ones_like(fallen) if energy is None else energy.isfinite(), torch.zeros_like(fallen)
        if noise is not None:
            settled = step <= torch.maximum(tolerance, torch.minimum(noise, eps**0.5 * size))
            settled = settled.all(1) & excess.isfinite() & finite
        return Ahead(excess, settled, blind, faint, singular, finite, None if energy is None else jacobian)


def _linearised(problem: Residual, z: Tensor) -> Jacobian | _Transformed:
    """The Jacobian at iterates, left for a step from these very ones."""
    operator = _Transformed(problem.look, z.detach()) if transforms.active() else Jacobian(problem.look, z.detach())
    problem.jacobian = z, operator
    return operator


def _exact(view: View) -> Step:
    """The step by the Jacobian, which is built."""
    problem, z, matrix, eps = view.problem, view.z, view.operator.dense(view.z), view.problem.eps
    weight = matrix.abs()
    terms = torch.bmm(weight, z.abs().unsqueeze(2)).squeeze(2)
    influence = (weight / terms.unsqueeze(2)).nan_to_num(0.0, torch.inf).amax(1)
    size = view.size + eps**0.5 / influence
    step, inverse, bad = newton_step(matrix, weight, view.residual)
    singular = bool(bad.any())
    if not (singular or view.noisy):
        return Step(step, size, None, matrix)
    noise, slopes = terms, torch.zeros_like(terms)
    if isinstance(problem, Slope):  # that of a gradient: an energy is a sum of squares, or as if it were one
        slopes = (2 * problem.energy.abs().unsqueeze(1) * weight.diagonal(dim1=1, dim2=2)).sqrt()
        noise = slopes if problem.terms is not None else slopes + terms
    if singular:
        some = torch.nonzero(bad).flatten()
        shortest, pseudo = shortest_step(matrix[some], view.residual[some], NOISE * eps * slopes[some])
        step, inverse = step.index_copy(0, some, shortest), inverse.index_copy(0, some, pseudo)
    noise = NOISE * eps * torch.bmm(inverse.abs(), noise.unsqueeze(2)).squeeze(2)
    if not singular:
        return Step(step, size, noise, matrix)
    faint = weight * view.size.unsqueeze(1) <= eps * view.highest.unsqueeze(2)
    return Step(step, size, noise, matrix, (weight == 0).all(1), faint.all(1), bad)


def _rough(view: View) -> Step:
    """The same for many unknowns: roughly, and with one size for all of a sample's."""
    if isinstance(view.problem, Slope):
        result = CG(rtol=ROUGH, max_steps=PRODUCTS).prepare(_Symmetric(view.operator)).solve(view.residual)
    else:
        result = GMRES(rtol=ROUGH, max_steps=PRODUCTS).prepare(view.operator).solve(view.residual)
    root = view.z.shape[1] ** 0.5
    solved = result.report.status == 0
    step = torch.where(solved, norm(result.x) / root, torch.nan).unsqueeze(1)
    size = norm(view.size).unsqueeze(1) / root
    return Step(step, size, NOISE * view.problem.eps * size if view.noisy else None)


def newton_step(matrix: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The solution of `J d = -r`, the inverse of `J`, and where that is singular, for matrices of any scaling.

    A residual of zero has no solution here: it may have underflowed, where the unknowns have run off.

    Args:
        matrix: `J`, `(B, n, n)`.
        weight: its entries' sizes.
        residual: `r`, `(B, n)`.
    """
    tiny = torch.finfo(matrix.dtype).tiny
    columns = weight.amax(1, keepdim=True).clamp_min(tiny)
    rows = (weight / columns).amax(2, keepdim=True).clamp_min(tiny)
    scaled, right = matrix / columns / rows, residual.unsqueeze(2) / rows
    inverse, failure = torch.linalg.inv_ex(scaled)
    step = torch.bmm(inverse, right)
    left = torch.linalg.vector_norm(right - torch.bmm(scaled, step), dim=(1, 2))
    solved = left < UNEXPLAINED * torch.linalg.vector_norm(right, dim=(1, 2))
    return -(step / columns.mT).squeeze(2), inverse / columns.mT / rows.mT, (failure != 0) | ~solved


def shortest_step(matrix: Tensor, residual: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The same for singular matrices: the shortest solution in equilibrated unknowns, and the pseudo-inverse.

    Where the residual has no answer, a slope along a flat direction that is no rounding, the solution is NaN.

    Args:
        matrix: `J`, `(B, n, n)`.
        residual: `r`, `(B, n)`.
        noise: how wrong it may be, `(B, n)`.
    """
    columns = _units(matrix.abs().amax(1)).unsqueeze(1)
    scaled = matrix / columns
    rows = _units(scaled.abs().amax(2)).unsqueeze(2)
    scaled, right = scaled / rows, residual.unsqueeze(2) / rows
    finite = (scaled.isfinite() & right.isfinite()).all(2).all(1)
    scaled, right = (torch.where(finite[:, None, None], part, 0.0) for part in (scaled, right))
    eps = torch.finfo(matrix.dtype).eps
    inverse = torch.linalg.pinv(scaled, rtol=matrix.shape[1] * NOISE * eps)
    step = torch.bmm(inverse, right)
    step = step + torch.bmm(inverse, right - torch.bmm(scaled, step))  # what rounding has left
    left = norm((right - torch.bmm(scaled, step)).squeeze(2))
    allowed = eps**0.5 * norm(right.squeeze(2)) + norm(noise / rows.squeeze(2))
    answered = finite & (left <= allowed)
    step = torch.where(answered.unsqueeze(1), -(step / columns.mT).squeeze(2), torch.nan)
    return step, inverse / columns.mT / rows.mT


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

    def dense(self, like: Tensor) -> Tensor:
        basis = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
        return transforms.for_rows(lambda row: self.rmatvec(row.expand(like.shape)), basis, 1)
