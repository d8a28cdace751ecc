r"""Programs reduced to the multipliers of their inequalities: $w = w_0 - K y$, in the smaller of two forms.

Let $M$ map a force to the displacement that minimises $\tfrac12 z^\top Q z - v^\top z$ under the homogeneous equations
$A z = 0$. Then $K = C M C^\top$ for the inequality rows $C$. `Dual` builds it, `(m, m)`; `Primal` solves with
$K + D^{-1}$ by the matrix $Q + C^\top D C$, `(n, n)`, which is less where there are many more rows than unknowns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program, times, times_transposed
from torchimplicit.optim.quadprog.saddle import factor

_MANY_ROWS = 1.3  # per unknown: where the primal form began to win in a prototype, from 50 unknowns on


@dataclass
class Start:
    """A program at zero multipliers of its inequalities, and its reduction, whose rows are scaled to `K_ii = 1`.

    Attributes:
        w: `C z` there, scaled, `(B, m)`.
        scale: of the rows, `(B, m)`: the unscaled ones are `scale` times as large.
        reduction: `Dual` or `Primal`.
    """

    w: Tensor
    scale: Tensor
    reduction: Dual | Primal


def gram(program: Program, curvature: Tensor) -> Tensor | None:
    """`R Q^{-1} R'` of all rows, `(B, r, r)`, given a Cholesky factor of `Q`; None where there are too many."""
    if program.rows.shape[1] - program.equalities > _MANY_ROWS * program.q.shape[1]:
        return None
    half = torch.linalg.solve_triangular(curvature, program.rows.mT, upper=False)
    return half.mT @ half


def reduce(program: Program, curvature: Tensor, gram: Tensor | None) -> Start:
    """Eliminates the unknowns and the equations.

    Args:
        program: the programs.
        curvature: Cholesky factor of `Q`.
        gram: see there; None takes the primal form.
    """
    if gram is None:
        return _primal(program, curvature)
    p = program.equalities
    free = -torch.cholesky_solve(program.q.unsqueeze(2), curvature)
    w = torch.bmm(program.rows, free).squeeze(2)
    K, w = (gram, w) if not p else _without_equations(gram, w, program.lower[:, :p])
    scale = _scale(K.diagonal(dim1=1, dim2=2))
    return Start(w / scale, scale, Dual((K / scale.unsqueeze(2)).div_(scale.unsqueeze(1))))


def _without_equations(gram: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    p = b.shape[1]
    equations, coupling = gram[:, :p, :p], gram[:, :p, p:]
    lower = _regular_factor(equations)
    right = torch.cat((coupling, (w[:, :p] - b).unsqueeze(2)), 2)
    half = torch.linalg.solve_triangular(lower, right, upper=False)
    projected = half[:, :, :-1]
    return torch.baddbmm(gram[:, p:, p:], projected.mT, projected, alpha=-1), w[:, p:] - torch.bmm(
        projected.mT, half[:, :, -1:]
    ).squeeze(2)


def _primal(program: Program, curvature: Tensor) -> Start:
    p = program.equalities
    equations, rows = program.rows[:, :p], program.rows[:, p:]
    z = -torch.cholesky_solve(program.q.unsqueeze(2), curvature)
    half = torch.linalg.solve_triangular(curvature, program.rows.mT, upper=False)
    diagonal = half[:, :, p:].square().sum(1)
    if p:
        lower = _regular_factor(half[:, :, :p].mT @ half[:, :, :p])
        nu = torch.cholesky_solve(torch.bmm(equations, z) - program.lower[:, :p].unsqueeze(2), lower)
        z = z - torch.cholesky_solve(torch.bmm(equations.mT, nu), curvature)
    scale = _scale(diagonal)
    w = torch.bmm(rows, z).squeeze(2)
    return Start(w / scale, scale, Primal(program.Q, rows / scale.unsqueeze(2), equations))


def _scale(diagonal: Tensor) -> Tensor:
    """Roots of the diagonal; one for a row that cannot move anything."""
    largest = diagonal.amax(1, keepdim=True)
    return torch.where(diagonal > 1e-20 * largest, diagonal, 1.0).sqrt()


def _regular_factor(gram: Tensor) -> Tensor:
    """A Cholesky factor of the equations' matrix; a hair is added to it where equations depend on each other."""
    empty = gram.diagonal(dim1=1, dim2=2) == 0  # equations that were left out
    if bool(empty.any()):
        gram = gram + torch.diag_embed(empty.to(gram.dtype))
    lower, sound = factor(gram)
    pivots = lower.diagonal(dim1=1, dim2=2).square()
    weak = ~sound | (pivots < 1e-13 * gram.diagonal(dim1=1, dim2=2)).any(1)
    if not bool(weak.any()):
        return lower
    hair = (1e-10 * weak * gram.diagonal(dim1=1, dim2=2).amax(1)).clamp_min(1e-30)
    return factor(gram + torch.diag_embed(hair.unsqueeze(1).expand(-1, gram.shape[1])))[0]


@dataclass
class Dual:
    """`K` itself, `(B, m, m)`; its diagonal of ones is overwritten by `factor`."""

    K: Tensor

    def take(self, index: Tensor) -> Dual:
        """See `Reduction.take`."""
        return Dual(self.K[index])

    def to(self, dtype: torch.dtype) -> Dual:
        """In another precision."""
        return Dual(self.K.to(dtype))

    def times(self, y: Tensor) -> Tensor:
        """See `Reduction.times`."""
        self.K.diagonal(dim1=1, dim2=2).fill_(1.0)
        return times(self.K, y)

    def factor(self, inverse: Tensor) -> _Cholesky:
        """See `Reduction.factor`."""
        self.K.diagonal(dim1=1, dim2=2).copy_(1 + inverse)  # in place: the factorisation copies it anyway
        return _Cholesky(torch.linalg.cholesky_ex(self.K)[0])


@dataclass
class _Cholesky:
    lower: Tensor

    def solve(self, right: Tensor) -> Tensor:
        return torch.cholesky_solve(right.unsqueeze(2), self.lower).squeeze(2)


@dataclass
class Primal:
    """`K` by what it is made of: `Q` `(B, n, n)`, inequality rows `(B, m, n)`, equations `(B, p, n)`."""

    Q: Tensor
    rows: Tensor
    equations: Tensor

    def take(self, index: Tensor) -> Primal:
        """See `Reduction.take`."""
        return Primal(*(getattr(self, part.name)[index] for part in fields(self)))

    def to(self, dtype: torch.dtype) -> Primal:
        """In another precision."""
        return Primal(*(getattr(self, part.name).to(dtype) for part in fields(self)))

    def times(self, y: Tensor) -> Tensor:
        """See `Reduction.times`."""
        return times(self.rows, self.factor(torch.full_like(y, torch.inf)).displacement(times_transposed(self.rows, y)))

    def factor(self, inverse: Tensor) -> _Condensed:
        """See `Reduction.factor`."""
        weight = 1 / inverse
        system = self.Q + (self.rows.mT * weight.unsqueeze(1)) @ self.rows
        lower = torch.linalg.cholesky_ex(system)[0]
        if not self.equations.shape[1]:
            return _Condensed(self, weight, lower, None)
        half = torch.linalg.solve_triangular(lower, self.equations.mT, upper=False)
        return _Condensed(self, weight, lower, _regular_factor(half.mT @ half))


@dataclass
class _Condensed:
    """`K + D^{-1}` by `H = Q + C'DC`: with `x = M_H C' D r`, `y = D (r - C x)`."""

    primal: Primal
    weight: Tensor
    lower: Tensor
    complement: Tensor | None

    def solve(self, right: Tensor) -> Tensor:
        forced = self.displacement(times_transposed(self.primal.rows, self.weight * right))
        return self.weight * (right - times(self.primal.rows, forced))

    def displacement(self, force: Tensor) -> Tensor:
        """`M_H v`, under the homogeneous equations."""
        free = torch.cholesky_solve(force.unsqueeze(2), self.lower)
        if self.complement is not None:
            nu = torch.cholesky_solve(torch.bmm(self.primal.equations, free), self.complement)
            free = free - torch.cholesky_solve(torch.bmm(self.primal.equations.mT, nu), self.lower)
        return free.squeeze(2)
