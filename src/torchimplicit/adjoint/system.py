"""A linear system of a derivative: solved by whatever method, then checked by a product with the true operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.adjoint.call import PointCall
from torchimplicit.core.independence import leakage
from torchimplicit.core.status import Report, Status
from torchimplicit.core.tree import largest, norm
from torchimplicit.linear import LU, Jacobian, LinearResult, LinearSolver
from torchimplicit.linear.solver import PLAY

ROUNDINGS = 10  # of the function, relative to right-hand side and solution, that a residual may be larger than promised
PART = 1e-2  # of a residual that must come from other samples to be put down to them


@dataclass
class System:
    """`B x = b` or `B^T x = b` for the Jacobian `B` of a call's residual, and how a linear solver left it.

    Both sides are scaled: gradients may be so small or so large that their squares are zero or infinite in float32.

    Attributes:
        call: the call.
        solver: the linear solver.
        b: right-hand sides, `(B, n)`.
        x: solutions; zero where they are not finite.
        scale: what both were divided by, `(B, 1)`.
        report: how it went; of the scaled system until `finish`.
        again: the same for another right-hand side.
    """

    call: PointCall
    solver: LinearSolver
    b: Tensor
    x: Tensor
    scale: Tensor
    report: Report
    again: Callable[[Tensor], LinearResult]

    @staticmethod
    def solve(call: PointCall, solver: LinearSolver, jacobian: Jacobian, b: Tensor, transpose: bool) -> System:
        """Solves, and believes what the linear solver says."""
        scale = largest(b).clamp_min(torch.finfo(b.dtype).tiny)
        b = b / scale
        prepared = solver.prepare(jacobian, call.inverse(len(b)))
        again = prepared.solve_transpose if transpose else prepared.solve
        x, report = again(b)
        if not report.converged:
            x = torch.where((report.status == Status.NON_FINITE).unsqueeze(1), 0, x)
        return System(call, solver, b, x, scale, report, again)

    @property
    def solution(self) -> Tensor:
        """The solution of the system that was asked for, `(B, n)`."""
        return self.x * self.scale

    def finish(self, product: Tensor | None, again: Callable[[], Callable[[Tensor], Tensor]], sign: int = 1) -> None:
        """Compares the claims with the product that was computed, reports, and reacts to failures.

        Args:
            product: of the whole batch's operator with `sign` times `solution`, `(B, n)`; None is zero.
            again: gives that operator's product, where more of them are needed.
            sign: 1 or -1.
        """
        gap = self.b if product is None else torch.addcdiv(self.b, product, self.scale, value=-sign)
        residual, scale = norm(gap), self.scale.squeeze(1)
        promised = self.solver.tolerance(self.b)
        converged = self.report.converged
        if converged and torch.equal(residual.clamp(max=promised), residual):
            size = residual * scale
        else:
            finite = scale.isfinite() if product is None else product.isfinite().all(1)
            # Beside a right-hand side of zero, what comes from other samples is infinite.
            unscaled = self.b * self.scale - (0 if product is None else sign * product)
            size = torch.where(residual < torch.inf, residual * scale, norm(unscaled))
            size = self._judge(gap, size, finite, again)
        self.report.residual = size / self.b.shape[1] ** 0.5
        self.call.finish_backward(self.report)

    def _judge(
        self,
        gap: Tensor,
        size: Tensor,
        finite: Tensor,
        again: Callable[[], Callable[[Tensor], Tensor]],
    ) -> Tensor:
        """The residuals' norms to report; takes claims back.

        A residual that is larger than promised, by more than rounding, comes from the other samples, which the linear
        solver takes for independent, or from a solver that has fooled itself.
        """
        report, scale, residual = self.report, self.scale.squeeze(1), norm(gap)
        promised = self.solver.tolerance(self.b)
        claimed = report.residual * self.b.shape[1] ** 0.5
        keeps = (report.status == Status.CONVERGED) & (promised > 0)  # else it promises no more than it claims
        promised = torch.where(keeps, promised, torch.fmax(promised, claimed))
        own, right = torch.finfo(self.b.dtype).eps, norm(self.b)
        eps = max(own, self.call.problem.eps)
        # Of a solution much longer than its right-hand side roundings may make a gradient wrong: half the digits must
        # be right, or what the function has of them.
        rounding = torch.minimum(eps * (norm(self.x) + right), torch.fmax(promised, max(own**0.5, eps) * right))
        limit = PLAY * promised + ROUNDINGS * rounding
        report.status = Status.NON_FINITE.unless(finite, report.status)
        doubtful = finite & ~(residual <= limit)
        if isinstance(self.solver, LU) and bool((doubtful & (report.status == Status.CONVERGED)).any()):
            doubtful = doubtful & ~self._is_rounding(gap)
        refuted = doubtful & (report.status == Status.CONVERGED)
        report.status = Status.STAGNATED.where(refuted, report.status)
        doubtful = doubtful | (report.status == Status.STAGNATED)
        if len(doubtful) > 1 and bool(doubtful.any()):
            foreign = leakage(again(), self.solution) > PART * size
            report.status = Status.COUPLED.where(doubtful & foreign, report.status)
        return torch.where(report.status == Status.NON_FINITE, claimed * scale, size)

    def _is_rounding(self, gap: Tensor) -> Tensor:
        """Whether what a residual still asks for is as little of every unknown as the method leaves, `(B,)` bool.

        So it is where a system is badly scaled: its residual is large in the units of some row, its solution is right.
        A direct solver has what that takes at hand; the others stop at a residual, which they then do not have. And the
        residual of every row must be little beside its right-hand side: products of a solution that is right to
        rounding may cancel, and gradients by whatever enters as the unknowns do are such products.
        """
        more, report = self.again(gap)
        part = self.solver.tolerance(self.b) / norm(self.b).clamp_min(torch.finfo(gap.dtype).tiny)
        eps = torch.finfo(gap.dtype).eps
        little = more.abs() <= part.unsqueeze(1) * (self.x.abs() + eps * self.x.abs().amax(1, keepdim=True))
        little = little & ((gap.abs() <= eps**0.5 * self.b.abs()) | (self.b == 0))
        return little.all(1) & (report.status == Status.CONVERGED) & part.isfinite()


def operator(call: PointCall, z: Tensor, tensors: Sequence[Tensor], transpose: bool) -> Callable[[Tensor], Tensor]:
    """The product with the Jacobian of the call's residual at a point, from an evaluation of its own."""
    with torch.no_grad(), call.problem.bind([tensor.detach() for tensor in call.unshared(tensors)]) as residual:
        jacobian = Jacobian(residual, z)
    return jacobian.rmatvec if transpose else jacobian.matvec
