"""The linear solves behind a cone program's derivatives: direct, and checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.status import Remedy, Report, Status
from torchimplicit.core.tree import norm
from torchimplicit.linear import LU, LinearSolver
from torchimplicit.linear.operator import LinearOperator, Matrix
from torchimplicit.linear.solver import LinearResult, Prepared

RANK = 1e-10  # singular values below this part of the largest count as zero


DERIVATIVES = {
    Status.STAGNATED: Remedy(
        "The solution or its multipliers are not unique, so that the derivative asked for is not there; the shortest "
        "least-squares one was taken.",
        (
            "a small multiple of the variables' squares in the objective",
            "to take constraints out that repeat each other",
        ),
    ),
    Status.NON_FINITE: Remedy(
        "The incoming gradient, or the derivative of the optimality conditions, is not finite. Such a sample adds "
        "nothing to the gradients."
    ),
}


class SoundReport(Report):
    """How linear systems were solved; a sample of 2 steps took least squares."""

    table = DERIVATIVES


@dataclass(frozen=True, kw_only=True)
class LUOrLeastSquares(LinearSolver):
    """`LU` where the matrix is regular, the shortest least-squares solution where it is not.

    Equations that are there twice leave the multipliers undetermined and the matrix singular, yet the solution has a
    derivative: the system can be solved, and any of its solutions gives it. The report tells: a sample that took least
    squares has 2 steps in place of 1, and it has `STAGNATED` where its residual is not small, that is where the
    derivative does not exist.

    Args:
        max_size: refuse more unknowns than this, rather than exhaust the memory.
    """

    max_size: int = 4096

    def prepare(self, operator: LinearOperator, inverse: LinearOperator | None = None) -> Prepared:
        """Prepares an operator; the matrix is built at the first solve."""
        return _Checked(self, operator)


class _Checked(Prepared):
    lu: Prepared | None = None

    def solve(self, b: Tensor, rtol: Tensor | None = None) -> LinearResult:
        """See `Prepared.solve`."""
        return self._repaired(b, self._prepared(b).solve(b), transpose=False)

    def solve_transpose(self, b: Tensor) -> LinearResult:
        """See `Prepared.solve_transpose`."""
        return self._repaired(b, self._prepared(b).solve_transpose(b), transpose=True)

    def _prepared(self, b: Tensor) -> Prepared:
        if self.lu is None:
            assert isinstance(self.solver, LUOrLeastSquares)
            limit = LU(max_size=self.solver.max_size)
            if b.shape[1] > limit.max_size:
                raise ValueError(
                    f"a cone program of {b.shape[1]} unknowns (variables and rows of the constraints): its derivative "
                    f"is solved for by dense matrices, for up to max_size={limit.max_size}; try a smaller program"
                )
            self.lu = limit.prepare(Matrix(self.operator.dense(b)))
        return self.lu

    def _repaired(self, b: Tensor, result: LinearResult, transpose: bool) -> LinearResult:
        x, found = result
        report = SoundReport(found.status, found.steps, found.residual, found.nfev, found.name, linear=True)
        rows = torch.nonzero((report.status != Status.CONVERGED) & b.isfinite().all(1)).flatten()
        if not len(rows):
            return LinearResult(x, report)
        matrix, right = self._prepared(b).operator.dense(b)[rows], b[rows]
        finite = matrix.isfinite().flatten(1).all(1)
        matrix = torch.where(finite[:, None, None], matrix.mT if transpose else matrix, 0)
        shortest = (torch.linalg.pinv(matrix, rtol=RANK) @ right.unsqueeze(2)).squeeze(2)
        residual = norm(right - (matrix @ shortest.unsqueeze(2)).squeeze(2))
        small = residual <= torch.finfo(b.dtype).eps ** 0.5 * norm(right)
        status = Status.CONVERGED.where(small, Status.STAGNATED)
        report.status[rows] = Status.NON_FINITE.unless(finite, status)
        report.residual[rows] = residual / b.shape[1] ** 0.5
        report.steps[rows] = 2
        return LinearResult(x.index_copy(0, rows, shortest), report)
