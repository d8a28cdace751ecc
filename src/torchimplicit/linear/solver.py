"""What a linear solver is: prepared once for an operator, it solves with the operator and with its transpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.migration import Explained
from torchimplicit.core.status import Report, Status
from torchimplicit.core.tree import norm
from torchimplicit.linear.operator import LinearOperator
from torchimplicit.linear.report import LinearReport

Product = Callable[[Tensor], Tensor]
PLAY = 2.0  # a true residual of more than so many times its target refutes a claim of convergence


class LinearResult(NamedTuple):
    """The solution `(B, n)` and how it was found; residuals are RMS of `b - A x`."""

    x: Tensor
    report: Report


class Prepared:
    """A linear solver made ready for one operator.

    Args:
        solver: the iterative method; `solver.run(product, b)` does the work.
        operator: the operator.
        inverse: an approximation of its inverse, to precondition with from the right: residuals stay true ones.
    """

    def __init__(self, solver: LinearSolver, operator: LinearOperator, inverse: LinearOperator | None = None):
        """Iterative methods have nothing to prepare."""
        self.solver, self.operator, self.inverse = solver, operator, inverse

    def solve(self, b: Tensor, rtol: Tensor | None = None) -> LinearResult:
        """`x` with `A x = b`, `(B, n)`.

        Args:
            b: right-hand sides, `(B, n)`.
            rtol: relative tolerances `(B,)` that are enough where they are looser than the solver's own.
        """
        return self._run(self.operator.matvec, self.inverse and self.inverse.matvec, b, rtol)

    def solve_transpose(self, b: Tensor) -> LinearResult:
        """`x` with `A^T x = b`, `(B, n)`."""
        return self._run(self.operator.rmatvec, self.inverse and self.inverse.rmatvec, b)

    def solution(self, b: Tensor, rtol: Tensor | None = None) -> Tensor:
        """The same without a word on how it went, for whoever looks at what becomes of it."""
        return self.solve(b, rtol).x

    def _run(self, product: Product, inverse: Product | None, b: Tensor, rtol: Tensor | None = None) -> LinearResult:
        if inverse is None:
            return self.solver.run(product, b, rtol)
        y, report = self.solver.run(lambda v: product(inverse(v)), b, rtol)
        return LinearResult(inverse(y), report)


@dataclass(frozen=True, kw_only=True)
class LinearSolver(Explained):
    """Base of the linear solvers. An iterative one adds `run`; a direct one overrides `prepare`."""

    def prepare(self, operator: LinearOperator, inverse: LinearOperator | None = None) -> Prepared:
        """Makes ready for an operator; a factorisation happens here, once.

        Args:
            operator: the operator.
            inverse: an approximation of its inverse; direct methods have no use for it.
        """
        return Prepared(self, operator, inverse)

    def run(self, product: Product, b: Tensor, rtol: Tensor | None = None) -> LinearResult:
        """Solves `A x = b` where `product(v)` is `A v`; samples are independent and stop on their own.

        Args:
            product: of the operator with `(B, n)`.
            b: right-hand sides, `(B, n)`.
            rtol: see `Prepared.solve`.
        """
        raise NotImplementedError

    def tolerance(self, b: Tensor) -> Tensor:
        """The norms of `b - A x` that the method promises where it says `CONVERGED`, `(B,)`.

        Zero where it promises none but what it reports; infinity where it reports none.
        """
        return torch.zeros_like(b[:, 0])


class Progress:
    """Which samples of a linear solve still run, since when the others stopped, and why.

    Args:
        b: right-hand sides `(B, n)`; one of zero is solved at once.
        rtol: a sample has converged when `|b - A x| <= rtol |b|`; one for all, or one each, `(B,)`.

    Attributes:
        before: steps of each sample in an earlier phase, `(B,)`, to which those of this one are added.
    """

    def __init__(self, b: Tensor, rtol: float | Tensor):
        """Judges the start `x = 0`."""
        self.residual = norm(b)
        self.target = rtol * self.residual
        self.status = torch.full(self.residual.shape, int(Status.MAX_STEPS), device=b.device)
        self.steps = self.before = torch.zeros_like(self.status)
        self.running = torch.ones_like(self.status, dtype=torch.bool)
        self.going, self.step, self.width = True, 0, b.shape[1]
        info = torch.finfo(b.dtype)
        if not torch.equal(self.residual.clamp(info.tiny, info.max), self.residual):  # some are solved, or have no size
            self.update(0, self.residual)

    def update(self, step: int, residual: Tensor, breakdown: Tensor | None = None) -> None:
        """Takes a step's residual norms `(B,)`.

        Args:
            step: the number of the step.
            residual: norms of `b - A x`.
            breakdown: samples that cannot go on; they count as stagnated unless they have converged.
        """
        self.step = step
        finite = residual < math.inf  # NaN is not
        goes_on = (residual > self.target) & finite
        stops = self.running & ~(goes_on if breakdown is None else goes_on & ~breakdown)
        self.residual = torch.where(self.running & finite, residual, self.residual)
        if bool(stops.any()):
            status = Status.CONVERGED.where(residual <= self.target, Status.STAGNATED)
            status = Status.NON_FINITE.unless(finite, status)
            self.status = torch.where(stops, status, self.status)
            self.steps = torch.where(stops, self.before + step, self.steps)
            self.running = self.running & ~stops
            self.going = bool(self.running.any())

    def revoke(self, which: Tensor, residual: Tensor) -> None:
        """Takes back the convergence of samples whose true residual is another: they count as stagnated."""
        finite = residual < math.inf
        failure = Status.STAGNATED.where(finite, Status.NON_FINITE)
        self.status = torch.where(which, failure, self.status)
        self.residual = torch.where(which & finite, residual, self.residual)

    def hold(self, new: Tensor, old: Tensor) -> Tensor:
        """The new rows of running samples, the old rows of stopped ones, `(B, n)`."""
        return torch.where(self.running.unsqueeze(1), new, old)

    def result(self, x: Tensor, products: int) -> LinearResult:
        """The result, once the iteration has ended."""
        steps = torch.where(self.running, self.before + self.step, self.steps)
        report = LinearReport(self.status, steps, self.residual / self.width**0.5, products, "linear solve")
        return LinearResult(x, report)

    def reopen(self, residual: Tensor) -> bool:
        """Takes the true residuals; lets samples run again whose claim of convergence that refutes.

        Returns:
            Whether there are such samples.
        """
        self.residual = torch.where(residual.isfinite(), residual, self.residual)
        self.reopened = (self.status == Status.CONVERGED) & ~(residual <= PLAY * self.target)
        self.status = Status.MAX_STEPS.where(self.reopened, self.status)
        self.running = self.running | self.reopened
        self.going = bool(self.reopened.any())
        return self.going

    def give_up(self) -> None:
        """Samples whose claims were refuted to the last count as stagnated."""
        self.revoke(self.reopened, self.residual)
