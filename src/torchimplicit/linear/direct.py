"""Direct solution of small systems: the matrices are built and factored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.options import require_count
from torchimplicit.core.status import Status
from torchimplicit.core.tree import norm
from torchimplicit.linear.operator import LinearOperator
from torchimplicit.linear.report import LinearReport
from torchimplicit.linear.solver import LinearResult, LinearSolver, Prepared


@dataclass(frozen=True, kw_only=True)
class LU(LinearSolver):
    """LU factorisation with partial pivoting of every sample's matrix, used for `A` and `A^T` alike.

    Costs `n` products with the operator and `B n^2` memory: for states of at most a few hundred unknowns, where it is
    both fastest and exact. A singular matrix is reported as non-finite or, where rounding hides it, as stagnated: the
    relative residual must come below the root of the dtype's rounding. Beyond that use `GMRES`.

    Args:
        max_size: refuse more unknowns than this, rather than exhaust the memory.
    """

    max_size: int = 4096

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_count(self, "max_size")

    def tolerance(self, b: Tensor) -> Tensor:
        """See `LinearSolver.tolerance`."""
        return torch.finfo(b.dtype).eps ** 0.5 * norm(b)

    def prepare(self, operator: LinearOperator, inverse: LinearOperator | None = None) -> Prepared:
        """Prepares an operator; it is factored at the first solve, when the size is known."""
        return _Factored(self, operator)


class _Factored(Prepared):
    factors: tuple[Tensor, Tensor, Tensor] | None = None

    def solve(self, b: Tensor, rtol: Tensor | None = None) -> LinearResult:
        return self._solve(b, transpose=False)

    def solve_transpose(self, b: Tensor) -> LinearResult:
        return self._solve(b, transpose=True)

    def solution(self, b: Tensor, rtol: Tensor | None = None, transpose: bool = False) -> Tensor:
        _, lu, pivots = self._factored(b)
        return torch.linalg.lu_solve(lu, pivots, b.unsqueeze(2), adjoint=transpose).squeeze(2)

    def _solve(self, b: Tensor, transpose: bool) -> LinearResult:
        x = self.solution(b, transpose=transpose)
        matrix, _, _ = self._factored(b)
        system = matrix.mT if transpose else matrix
        gap = b - torch.bmm(x.unsqueeze(1), system.mT).squeeze(1)
        residual, size = norm(gap), norm(b)
        # In units that no scaling of rows or columns changes; none of them is larger than one.
        weight, eps = system.abs(), torch.finfo(b.dtype).eps
        rows = (weight / weight.amax(1, keepdim=True).clamp_min(torch.finfo(b.dtype).tiny)).amax(2)
        parted = norm(gap / rows)
        status = torch.zeros_like(residual, dtype=torch.int64)
        # So what is little in them beside the right-hand side is little by both tests: the usual case.
        if not torch.equal(parted.clamp(max=min(eps**0.5, 100 * eps * b.shape[1]) * size), parted):
            # Backward stable solves leave rounding times |A| |x|; a (numerically) singular matrix leaves NaN or far
            # more. Which that is, shows in those units.
            small = parted <= self.solver.tolerance(b / rows)
            size = torch.linalg.matrix_norm(matrix) * norm(x) + size
            sound = (residual <= 100 * eps * b.shape[1] * size) & small
            status = Status.CONVERGED.where(sound, Status.STAGNATED)
            finite = residual < torch.inf
            status = Status.NON_FINITE.unless(finite, status)
            residual = torch.where(finite, residual, norm(b))
        residual = residual / b.shape[1] ** 0.5
        return LinearResult(x, LinearReport(status, torch.ones_like(status), residual, b.shape[1], "linear solve"))

    def _factored(self, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.factors = self.factors or self._factor(b)
        return self.factors

    def _factor(self, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(self.solver, LU)
        if b.shape[1] > self.solver.max_size:
            raise ValueError(
                f"LU: got {b.shape[1]} unknowns per sample, expected at most max_size={self.solver.max_size}; "
                "try GMRES(), which never builds the matrix"
            )
        matrix = self.operator.dense(b)
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return matrix, lu, pivots
