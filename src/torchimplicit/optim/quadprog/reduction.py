r"""Programs with a definite `Q`, reduced to the multipliers of their inequalities: $w = w_0 - K y$.

Let $M$ map a force to the displacement that minimises $\tfrac12 z^\top Q z - v^\top z$ under the homogeneous equations
$A z = 0$. Then $K = C M C^\top$ for the inequality rows $C$.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program, times
from torchimplicit.optim.quadprog.saddle import factor


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
    reduction: Dual


def gram(program: Program, curvature: Tensor) -> Tensor:
    """`R Q^{-1} R'` of all rows, `(B, r, r)`, given a Cholesky factor of `Q`."""
    half = torch.linalg.solve_triangular(curvature, program.rows.mT, upper=False)
    return half.mT @ half


def reduce(program: Program, curvature: Tensor, gram: Tensor) -> Start:
    """Eliminates the unknowns and the equations.

    Args:
        program: the programs.
        curvature: Cholesky factor of `Q`.
        gram: see there.
    """
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

    def solve(self, right: Tensor, _: Tensor | None = None) -> tuple[None, Tensor]:
        return None, torch.cholesky_solve(right.unsqueeze(2), self.lower).squeeze(2)
