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

DENSE = 256  # unknowns per sample up to which the Jacobian is built and factored
NOISE = 10.0  # roundings of its terms by which a residual may be wrong
ROUGH, PRODUCTS = 0.1, 100  # beyond: the relative residual to which the step is solved for, within so many products
UNEXPLAINED = 1e-3  # part of a residual that a solve may leave; by more a Jacobian counts as singular


class Ahead(NamedTuple):
    """What lies ahead of every sample's iterate.

    Attributes:
        excess: the largest of the step's components, in units of what is allowed; infinite where there is no step,
            `(B,)`.
        settled: whether the step is no longer than rounding makes it, `(B,)` bool; None where nobody had to know.
        blind: unknowns that the residual does not depend on, `(B, n)` bool; None where there are none.
        faint: unknowns whose whole size changes no residual by more than a rounding of what it has been, the same.
        singular: whether the residual does not change along some direction, `(B,)` bool; None where none is.
        finite: whether the energy, if there is one, is finite, `(B,)` bool; None where all are.
    """

    excess: Tensor
    settled: Tensor | None = None
    blind: Tensor | None = None
    faint: Tensor | None = None
    singular: Tensor | None = None
    finite: Tensor | None = None


@dataclass(frozen=True)
class Outlook:
    """What a look ahead begins with.

    Attributes:
        problem: the residual.
        at: the iterates, `(B, n)`.
        largest: the largest size that each unknown has had, `(B, n)`.
        highest: the largest size that each residual has had, `(B, n)`.
        fallen: samples whose residual has fallen by more than a rounding of what it was, `(B,)` bool: where the
            unknowns still move then, it is the function that has become flat.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    problem: Residual
    at: Tensor
    largest: Tensor
    highest: Tensor
    fallen: Tensor
    rtol: float
    atol: float

    @property
    def z(self) -> Tensor:
        """The iterates, without their graph."""
        return self.at.detach()

    @property
    def size(self) -> Tensor:
        """The unknowns' sizes, `(B, n)`: with a rounding of the largest that each has had."""
        return torch.add(self.z.abs(), self.largest, alpha=self.problem.eps)

    def excess(self, step: Tensor, size: Tensor) -> Tensor:
        """The largest of a step's components, `(B,)`, in units of what is allowed for these sizes."""
        tolerance = self.atol + self.rtol * size
        excess = (step.abs() / tolerance.clamp_min(torch.finfo(step.dtype).tiny)).amax(1)
        flat = self.fallen & ((step.abs() / size).amax(1) > self.problem.eps**0.5)
        return torch.where(flat | excess.isnan(), torch.inf, excess)


def look_ahead(outlook: Outlook, asks: Tensor, thorough: bool) -> Ahead:
    """The Newton step from an iterate, judged.

    Args:
        outlook: the iterate.
        asks: the samples to judge, `(B,)` bool.
        thorough: whether to tell what rounding makes of the step.
    """
    problem, z = outlook.problem, outlook.z
    with torch.no_grad():
        operator = _Transformed(problem.look, z) if transforms.active() else Jacobian(problem.look, z)
        problem.jacobian = outlook.at, operator
        residual = operator.value.detach()
        energy = problem.energy if isinstance(problem, Slope) else None
        if z.shape[1] > DENSE:
            step, size, noise = _rough(problem, operator, residual, outlook.size)
            return _judged(outlook, energy, step, size, noise)
        matrix = operator.dense(z)
        if not thorough:
            ahead = _at_a_glance(outlook, asks, matrix, residual, energy)
            if ahead is not None:
                return ahead
        return _exact(outlook, matrix, residual, energy)


def _at_a_glance(
    outlook: Outlook, asks: Tensor, matrix: Tensor, residual: Tensor, energy: Tensor | None
) -> Ahead | None:
    """The judgement where nothing is special: Jacobians that are regular, energies that are finite."""
    weight = matrix.abs()
    step, solved = _plain_step(matrix, weight, residual)
    solved = solved if energy is None else solved & (energy.abs() < torch.inf)
    if bool((asks & ~solved).any()):
        return None
    return Ahead(outlook.excess(step, outlook.size + _zero(outlook, weight)[0]))


def _plain_step(matrix: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The solution of `J d = -r`, `(B, n)`, in equilibrated unknowns and equations, and whether it is one, `(B,)`.

    A residual of zero has none: it may have underflowed, where the unknowns have run off.
    """
    columns = weight.amax(1, keepdim=True)
    rows = (weight / columns).amax(2, keepdim=True)
    scaled, right = matrix / columns / rows, residual.unsqueeze(2) / rows
    step = torch.linalg.solve_ex(scaled, right)[0]
    left = torch.linalg.vector_norm(torch.baddbmm(right, scaled, step, alpha=-1), dim=(1, 2))
    solved = left < UNEXPLAINED * torch.linalg.vector_norm(right, dim=(1, 2))
    return -(step.squeeze(2) / columns.squeeze(1)), solved


def _zero(outlook: Outlook, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What counts as zero of every unknown, and the size of each equation's terms, `(B, n)` each."""
    terms = torch.bmm(weight, outlook.z.abs().unsqueeze(2)).squeeze(2)
    influence = (weight / terms.unsqueeze(2)).nan_to_num(0.0, torch.inf).amax(1)
    return outlook.problem.eps**0.5 / influence, terms


def _judged(
    outlook: Outlook,
    energy: Tensor | None,
    step: Tensor,
    size: Tensor,
    noise: Tensor,
    *which: Tensor,
) -> Ahead:
    """The judgement of a step for unknowns of a size where rounding makes steps of `noise`, `(B, n)` each.

    `which` are who is blind, faint and singular.
    """
    excess, eps = outlook.excess(step, size), outlook.problem.eps
    tolerance = outlook.atol + outlook.rtol * size
    settled = step.abs() <= torch.maximum(tolerance, torch.minimum(noise, eps**0.5 * size))
    settled = settled.all(1) & excess.isfinite()
    finite = None if energy is None else energy.isfinite()
    blind, faint, singular = which or (None, None, None)
    return Ahead(excess, settled if finite is None else settled & finite, blind, faint, singular, finite)


def _exact(outlook: Outlook, matrix: Tensor, residual: Tensor, energy: Tensor | None) -> Ahead:
    """The judgement where Jacobians may be singular, and of what rounding makes of the step."""
    problem, weight = outlook.problem, matrix.abs()
    zero, terms = _zero(outlook, weight)
    noise = terms
    # That of a gradient: an energy is a sum of squares, or as if it were one.
    slopes = torch.zeros_like(terms)
    if energy is not None:
        slopes = (2 * energy.abs().unsqueeze(1) * matrix.diagonal(dim1=1, dim2=2).abs()).sqrt()
        noise = slopes if getattr(problem, "terms", None) is not None else slopes + terms
    step, inverse, singular = newton_step(matrix, residual, NOISE * problem.eps * slopes)
    noise = NOISE * problem.eps * torch.bmm(inverse.abs(), noise.unsqueeze(2)).squeeze(2)
    faint = (weight * outlook.size.unsqueeze(1) <= problem.eps * outlook.highest.unsqueeze(2)).all(1)
    return _judged(outlook, energy, step, outlook.size + zero, noise, (weight == 0).all(1), faint, singular)


def _rough(
    problem: Residual, operator: Jacobian | _Transformed, residual: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Step, size and noise for many unknowns: roughly, one number `(B, 1)` for all of a sample's."""
    if isinstance(problem, Slope):
        result = CG(rtol=ROUGH, max_steps=PRODUCTS).prepare(_Symmetric(operator)).solve(residual)
    else:
        result = GMRES(rtol=ROUGH, max_steps=PRODUCTS).prepare(operator).solve(residual)
    root = size.shape[1] ** 0.5
    solved = result.report.status == 0
    step = torch.where(solved, norm(result.x) / root, torch.nan).unsqueeze(1)
    size = norm(size).unsqueeze(1) / root
    return step, size, NOISE * problem.eps * size


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

    def dense(self, like: Tensor) -> Tensor:
        basis = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
        return torch.vmap(lambda row: self.rmatvec(row.expand(like.shape)), out_dims=1)(basis)
