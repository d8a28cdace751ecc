r"""The whole Karush-Kuhn-Tucker matrix, regularised so that it can always be solved with.

$$ \begin{pmatrix} Q + \rho I & R^\top \\ R & -(D^{-1} + \delta I) \end{pmatrix} $$

is quasi-definite whatever `Q` and the rows are (M. P. Friedlander, D. Orban, Math. Prog. Comp. 4, 2012). As the
method's iterates are the centres of the proximal terms that $\rho$ and $\delta$ stand for, solutions are not changed
(R. Schwan et al., PIQP, arXiv:2304.00290). Rows with a single entry only add to the diagonal of `Q`; where that is all
there is, what remains are the normal equations of the other rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.kkt import factor
from torchimplicit.optim.quadprog.program import Program, largest, times, times_transposed

_RHO = 1e-11
_DELTA = 1e-10
_FREE = 1e30
_FIXED = 1e-9
_FEW = 4  # times as many unknowns as rows, where normal equations are much less work
_MANY = 2  # times as many rows as unknowns are folded into the matrix of these
_PIVOT = 1e-14


@dataclass(frozen=True)
class Augmented:
    """The matrices of programs in units in which all is about one.

    Attributes:
        program: the programs.
        kept: rows of the matrix, `(e,)`.
        folded: rows that are eliminated as a matrix, `(f,)`.
        single: rows with one entry, which are eliminated one by one, `(s,)`.
        column: of that entry, `(s,)`.
        diagonal: whether only a diagonal is left in place of `Q`.
    """

    program: Program
    kept: Tensor
    folded: Tensor
    single: Tensor
    column: Tensor
    diagonal: bool

    @staticmethod
    def of(program: Program, accurate: bool) -> Augmented:
        """Looks at where the rows have their entries.

        Args:
            program: the programs.
            accurate: never by normal equations, which are cheap where few rows have several entries, but lose digits
                where all unknowns of a row are on bounds.
        """
        n, rows = program.q.shape[1], program.rows
        pattern = (rows != 0).any(0)
        few = pattern.sum(1) <= 1
        dense, single = torch.nonzero(~few).flatten(), torch.nonzero(few).flatten()
        column = pattern[single].to(torch.int8).argmax(1) if n else single
        folded = dense[:0]
        if len(dense) > _MANY * n:
            folded, dense = dense[dense >= program.equalities], dense[dense < program.equalities]
        own = program.Q.diagonal(dim1=1, dim2=2)
        diagonal = (
            not accurate
            and _FEW * len(dense) <= n
            and not len(folded)
            and not bool((program.Q - torch.diag_embed(own)).any())
        )
        if diagonal:
            bounded = (program.lower.isfinite() | program.upper.isfinite())[:, single] & (rows[:, single, column] != 0)
            held = torch.zeros_like(own).index_add_(1, column, bounded.to(own.dtype))
            diagonal = bool(((held > 0) | (own > _PIVOT**0.5)).all())
        return Augmented(program, dense, folded, single, column, diagonal)

    def take(self, index: Tensor) -> Augmented:
        """Those of some of the programs."""
        return replace(self, program=self.program.take(index))

    def start(self) -> tuple[Tensor, Tensor]:
        """A first point `(B, n)`, near the bounds that are nearest to zero, and multipliers `(B, r)`."""
        program = self.program
        target = torch.zeros_like(program.lower).clamp(program.lower, program.upper)
        bounded = program.lower.isfinite() | program.upper.isfinite()
        inverse = torch.where(program.lower == program.upper, _FIXED, torch.where(bounded, 1.0, _FREE))
        return self.factor(inverse, 1.0).solve(-target, program.q)

    def at(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`R z`, the slope of the Lagrangian, and the size of its terms, `(B, 1)`."""
        program = self.program
        curved, pulled = times(program.Q, z), times_transposed(program.rows, y)
        size = torch.stack((largest(curved), largest(pulled), largest(program.q))).amax(0)
        return times(program.rows, z), curved + program.q + pulled, size.unsqueeze(1)

    def factor(self, inverse: Tensor, unit: Tensor | float) -> _Eliminated:
        """Prepares for the diagonal `D^{-1}`, `(B, r)`; unknowns are `unit`, `(B, 1)`, times multipliers."""
        program, inverse = self.program, inverse + _DELTA * unit
        weight = 1 / inverse
        entry = program.rows[:, self.single, self.column]
        shift = torch.ones_like(program.q) * (_RHO / unit)
        shift = shift.index_add(1, self.column, entry.square() * weight[:, self.single])
        E, corner = program.rows[:, self.kept], inverse[:, self.kept]
        if self.diagonal:
            inner: _Normal | _Whole = _Normal.of(program.Q.diagonal(dim1=1, dim2=2) + shift, E, corner)
        else:
            inner = _Whole.of(program.Q, shift, self._fold(weight), E, corner)
        return _Eliminated(self, weight, entry, inner)

    def _fold(self, weight: Tensor) -> Tensor | None:
        if not len(self.folded):
            return None
        rows = self.program.rows[:, self.folded]
        return (rows.mT * weight[:, self.folded].unsqueeze(1)) @ rows


@dataclass
class _Eliminated:
    """Solves with what is left after rows with one entry and folded rows have been eliminated."""

    system: Augmented
    weight: Tensor
    entry: Tensor
    inner: _Normal | _Whole

    def solve(self, right: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """The steps of unknowns and multipliers."""
        system = self.system
        single, folded, kept = system.single, system.folded, system.kept
        rows = system.program.rows[:, folded] if len(folded) else None
        top = (-slope).index_add(1, system.column, -self.entry * self.weight[:, single] * right[:, single])
        if rows is not None:
            top = top - times_transposed(rows, self.weight[:, folded] * right[:, folded])
        z, below = self.inner.solve(top, -right[:, kept])
        y = torch.empty_like(right)
        y[:, kept] = below
        y[:, single] = self.weight[:, single] * (self.entry * z[:, system.column] + right[:, single])
        if rows is not None:
            y[:, folded] = self.weight[:, folded] * (times(rows, z) + right[:, folded])
        return z, y


@dataclass
class _Whole:
    """The symmetric indefinite matrix, factored with pivots."""

    matrix: Tensor
    factors: tuple[Tensor, Tensor]

    @staticmethod
    def of(Q: Tensor, shift: Tensor, folded: Tensor | None, E: Tensor, corner: Tensor) -> _Whole:
        n, e = Q.shape[1], E.shape[1]
        matrix = Q.new_zeros(len(Q), n + e, n + e)
        matrix[:, :n, :n] = Q if folded is None else Q + folded
        matrix[:, n:, :n], matrix[:, :n, n:] = E, E.mT
        matrix.diagonal(dim1=1, dim2=2).add_(torch.cat((shift, -corner), 1))
        return _Whole(matrix, tuple(torch.linalg.ldl_factor_ex(matrix)[:2]))

    def solve(self, top: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        right = torch.cat((top, below), 1).unsqueeze(2)
        found = torch.linalg.ldl_solve(*self.factors, right)
        found = found + torch.linalg.ldl_solve(*self.factors, right - self.matrix @ found)
        return found[:, : top.shape[1], 0], found[:, top.shape[1] :, 0]


@dataclass
class _Normal:
    """A diagonal in place of `Q`: the normal equations."""

    diagonal: Tensor
    E: Tensor
    corner: Tensor
    lower: Tensor

    @staticmethod
    def of(diagonal: Tensor, E: Tensor, corner: Tensor) -> _Normal:
        system = (E / diagonal.unsqueeze(1)) @ E.mT
        own = system.diagonal(dim1=1, dim2=2)
        own.add_(corner + _PIVOT * own)
        return _Normal(diagonal, E, corner, factor(system)[0])

    def solve(self, top: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        z, y = self._once(top, below)
        for _ in range(2):
            left = top - self.diagonal * z - times_transposed(self.E, y)
            dz, dy = self._once(left, below - times(self.E, z) + self.corner * y)
            z, y = z + dz, y + dy
        return z, y

    def _once(self, top: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        free = top / self.diagonal
        y = torch.cholesky_solve((times(self.E, free) - below).unsqueeze(2), self.lower).squeeze(2)
        return (top - times_transposed(self.E, y)) / self.diagonal, y
