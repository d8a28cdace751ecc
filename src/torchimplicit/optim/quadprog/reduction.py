r"""Programs with a definite `Q`, reduced to the multipliers of their inequalities: $w = w_0 - K y$.

Let $M$ map a force to the displacement that minimises $\tfrac12 z^\top Q z - v^\top z$ under the homogeneous equations
$A z = 0$. Then $K = C M C^\top$ for the inequality rows $C$.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.kkt import factor, solved
from torchimplicit.optim.quadprog.prepare import Prepared
from torchimplicit.optim.quadprog.program import times, times_transposed

_MANY = 1.5  # rows per unknown: with more, what the unknowns leave is the smaller system


@dataclass
class Start:
    """A program at zero multipliers of its inequalities, and its reduction, whose rows are scaled to `K_ii = 1`.

    Attributes:
        w: `C z` there, scaled, `(B, m)`.
        scale: of the rows, `(B, m)`: the unscaled ones are `scale` times as large.
        reduction: `K`.
    """

    w: Tensor
    scale: Tensor
    reduction: Dual | Slim


def reduce(prepared: Prepared) -> Start:
    """Eliminates the unknowns and the equations."""
    program, gram = prepared.program, prepared.gram
    p, n = program.equalities, program.q.shape[1]
    w, half, K = prepared.w, None, gram
    if program.rows.shape[1] - p > _MANY * n:
        half = torch.linalg.solve_triangular(prepared.cholesky, program.rows.mT, upper=False)
    if p:
        lower = _regular_factor(gram[:, :p, :p])
        right = torch.cat((gram[:, :p, p:], (w[:, :p] - program.lower[:, :p]).unsqueeze(2)), 2)
        right = torch.linalg.solve_triangular(lower, right, upper=False)
        projected, w = right[:, :, :-1], w[:, p:] - torch.bmm(right[:, :, :-1].mT, right[:, :, -1:]).squeeze(2)
        if half is None:
            K = torch.baddbmm(gram[:, p:, p:], projected.mT, projected, alpha=-1)
        else:
            apart = torch.linalg.solve_triangular(lower, half[:, :, :p].mT, upper=False)
            half = half[:, :, p:] - torch.bmm(apart.mT, projected)
    if half is not None:
        scale = _scale(half.square().sum(1))
        return Start(w / scale, scale, Slim(half / scale.unsqueeze(1)))
    scale = _scale(K.diagonal(dim1=1, dim2=2))
    return Start(w / scale, scale, Dual((K / scale.unsqueeze(2)).div_(scale.unsqueeze(1))))


def _scale(diagonal: Tensor) -> Tensor:
    """Roots of the diagonal; one for a row that cannot move anything."""
    largest = diagonal.amax(1, keepdim=True)
    return torch.where(diagonal > 1e-20 * largest, diagonal, 1.0).sqrt()


def _regular_factor(gram: Tensor) -> Tensor:
    """A Cholesky factor of the equations' matrix, regularised where equations depend on each other."""
    empty = gram.diagonal(dim1=1, dim2=2) == 0  # equations that were left out
    if bool(empty.any()):
        gram = gram + torch.diag_embed(empty.to(gram.dtype))
    lower, sound = factor(gram)
    pivots = lower.diagonal(dim1=1, dim2=2).square()
    weak = ~sound | (pivots < 1e-13 * gram.diagonal(dim1=1, dim2=2)).any(1)
    if not bool(weak.any()):
        return lower
    regularisation = (1e-10 * weak * gram.diagonal(dim1=1, dim2=2).amax(1)).clamp_min(1e-30)
    return factor(gram + torch.diag_embed(regularisation.unsqueeze(1).expand(-1, gram.shape[1])))[0]


@dataclass
class Dual:
    """`K` itself, `(B, m, m)`; its diagonal of ones is overwritten by `factor`."""

    K: Tensor

    def take(self, index: Tensor) -> Dual:
        """That of some of the programs."""
        return Dual(self.K[index])

    def to(self, dtype: torch.dtype) -> Dual:
        """In another precision."""
        return Dual(self.K.to(dtype))

    def times(self, y: Tensor) -> Tensor:
        """`K y`, `(B, m)`."""
        self.K.diagonal(dim1=1, dim2=2).fill_(1.0)
        return times(self.K, y)

    def factor(self, inverse: Tensor, _: Tensor | float = 1.0) -> _Cholesky:
        """Prepares `K + D^{-1}` for the diagonal `D^{-1}`, `(B, m)`."""
        self.K.diagonal(dim1=1, dim2=2).copy_(1 + inverse)  # in place: the factorisation copies it anyway
        return _Cholesky(torch.linalg.cholesky_ex(self.K)[0])


@dataclass
class _Cholesky:
    lower: Tensor

    def solve(self, right: Tensor) -> Tensor:
        return torch.cholesky_solve(right.unsqueeze(2), self.lower).squeeze(2)


@dataclass
class Slim:
    """`K = H'H` by `H`, `(B, n, m)`: the smaller system where there are more rows than unknowns."""

    half: Tensor

    def take(self, index: Tensor) -> Slim:
        """That of some of the programs."""
        return Slim(self.half[index])

    def to(self, dtype: torch.dtype) -> Slim:
        """In another precision."""
        return Slim(self.half.to(dtype))

    def times(self, y: Tensor) -> Tensor:
        """`K y`, `(B, m)`."""
        return times_transposed(self.half, times(self.half, y))

    def factor(self, inverse: Tensor, _: Tensor | float = 1.0) -> _Condensed:
        """Prepares `K + D^{-1}` for the diagonal `D^{-1}`, `(B, m)`."""
        weight = 1 / inverse
        system = torch.bmm(self.half * weight.unsqueeze(1), self.half.mT)
        system.diagonal(dim1=1, dim2=2).add_(1.0)
        return _Condensed(self.half, weight, torch.linalg.cholesky_ex(system)[0])


@dataclass
class _Condensed:
    """Solves with `K + D^{-1}` by `I + H D H'`."""

    half: Tensor
    weight: Tensor
    lower: Tensor

    def solve(self, right: Tensor) -> Tensor:
        moved = solved(self.lower, times(self.half, self.weight * right))
        return self.weight * (right - times_transposed(self.half, moved))
