"""How sparse programs are differentiated: by the entries of their matrices, with the factors of the forward solve."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from torchimplicit.optim.quadprog.derivative import TRUSTED, ProgramCall
from torchimplicit.optim.quadprog.solve import Outcome
from torchimplicit.optim.quadprog.sparse_matrix import SparseMatrix


@dataclass(frozen=True)
class SparseCall(ProgramCall):
    """One call of the public function, whose matrices are tensors of entries `(k,)` that all programs share.

    Attributes:
        patterns: of `Q` and of the rows.
    """

    patterns: tuple[SparseMatrix, SparseMatrix] = field(kw_only=True)

    def matrices(self, Q: Any, rows: Any) -> tuple[Any, Any]:
        """The matrices that tensors of entries stand for, or their tangents; None for None."""
        given = zip(self.patterns, (Q, rows), strict=True)
        curvature, constraints = (None if values is None else replace(at, values=values) for at, values in given)
        return curvature, constraints

    def keep(self, outcome: Outcome) -> None:
        """Keeps how the forward solve went, and the factors of the programs that were solved."""
        self.record.outcome, self.kept.kkt = outcome, outcome.point.kkt

    def solve(
        self, Q: Tensor, rows: Tensor, active: Tensor, r: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, bool]:
        """See `ProgramCall.solve`; zero for unsolved programs."""
        z, y, residual = self.kept.kkt.solve(r, t)
        return z, y, residual, bool((residual <= TRUSTED).all())

    def by_symmetric(self, v: Tensor, z: Tensor) -> Tensor:
        """The gradient by the entries of a symmetric matrix that enters as `v'Qz`, summed over the programs, `(k,)`."""
        return -0.5 * (self.patterns[0].outer(v, z) + self.patterns[0].outer(z, v))

    def by_rows(self, v: Tensor, w: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """The gradient by the entries of the rows, which enter as `R'y` and `R z`, summed over the programs, `(k,)`."""
        return -(self.patterns[1].outer(y, v) + self.patterns[1].outer(w, z))
