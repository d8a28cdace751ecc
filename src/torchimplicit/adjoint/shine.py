"""Sharing the inverse estimate: the forward solver's quasi-Newton factor as the backward solve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.adjoint.call import Adjoint, PointCall
from torchimplicit.adjoint.implicit import ImplicitSolve
from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.status import Status
from torchimplicit.core.tree import norm
from torchimplicit.linear import LinearOperator, LinearResult, LinearSolver, Prepared
from torchimplicit.linear.report import LinearReport
from torchimplicit.linear.solver import Product


@dataclass(frozen=True)
class Shine(Adjoint):
    r"""Takes over the inverse Jacobian that `Broyden` has learnt: nearly no backward solve, a biased gradient.

    With the quasi-Newton inverse $H \approx B^{-1}$ of the forward solve, backward takes $u_0 = H^\top g$ for
    $B^{-\top} g$, and refines it by $u_{k+1} = u_k + H^\top (g - B^\top u_k)$, one product each. The relative error is
    at most $\|I - H^\top B^\top\|^{k+1}$: `refine` makes a good factor better. Where $|u_0|$ exceeds `fallback` times
    $|g|$, or is worse than nothing, the factor has exploded: the sample gets the Jacobian-free gradient, as of
    `Phantom()`, and is reported as diverged, as is one whose refinement went astray and stopped at its best. Broyden's
    factor knows the directions that its steps went in; with a loose forward tolerance those are few. For an exact
    gradient from the same factor take `Implicit(precondition=True)`.

    Source: Z. Ramzi et al., ICLR 2022, arXiv 2106.00553, section 2.

    Args:
        refine: refinement steps, >= 0, of one product each.
        fallback: how many times longer than the incoming gradient its solution may be, > 0.
    """

    refine: int = 0
    fallback: float = 30.0

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_count(self, "refine", least=0)
        require(self, "fallback", is_number(self.fallback) and self.fallback > 0, "a number > 0")

    @property
    def wants_inverse(self) -> bool:
        """See `Adjoint.wants_inverse`."""
        return True

    def solve(self, call: PointCall, z0: Tensor, tensors: list[Tensor]) -> Tensor:
        """See `Adjoint.solve`."""
        solver = _Refinement(steps=self.refine, fallback=self.fallback)
        return ImplicitSolve.apply(call, solver, z0.detach(), *tensors)


@dataclass(frozen=True, kw_only=True)
class _Refinement(LinearSolver):
    """Iterative refinement of what an approximate inverse gives."""

    steps: int
    fallback: float

    def tolerance(self, b: Tensor) -> Tensor:
        """Approximate by design, but better than nothing."""
        return norm(b)

    def prepare(self, operator: LinearOperator, inverse: LinearOperator | None = None) -> Prepared:
        """Makes ready for an operator and its approximate inverse."""
        if inverse is None:  # not for want of a solver that learns: the public function has seen to that
            raise NotImplementedError(
                "Shine cannot tell whose inverse is whose where a derivative is mapped inside of torch.vmap, as in "
                "vmap(jacrev(f)); try jacrev outside of vmap, or Implicit()"
            )
        return _Refining(self, operator, inverse)


class _Refining(Prepared):
    def _run(self, product: Product, inverse: Product | None, b: Tensor, rtol: Tensor | None = None) -> LinearResult:
        assert isinstance(self.solver, _Refinement)
        assert inverse is not None
        x = inverse(b)
        exploded = ~(norm(x) <= self.solver.fallback * norm(b))
        x = torch.where(exploded.unsqueeze(1), b, x)
        size, best = torch.full_like(x[:, 0], math.nan), b  # NaN: not measured, it would cost a product
        last = norm(b)
        for _ in range(self.solver.steps):
            gap = b - product(x)
            worse = ~exploded & ~(norm(gap) <= last)
            exploded = exploded | worse  # goes back, and stays there
            best = torch.where(exploded.unsqueeze(1), best, x)
            size = last = torch.where(exploded, last, norm(gap))
            x = torch.where(exploded.unsqueeze(1), best, x + inverse(gap))
        residual = size / b.shape[1] ** 0.5
        status = Status.DIVERGED.where(exploded, Status.CONVERGED)
        status = Status.NON_FINITE.unless(norm(x).isfinite(), status)
        steps = torch.full_like(status, self.solver.steps)
        return LinearResult(x, LinearReport(status, steps, residual, self.solver.steps, "linear solve"))
