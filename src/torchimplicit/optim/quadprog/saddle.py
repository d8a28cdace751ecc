r"""The linear systems of quadratic programming, with a factor that the forward solve and the derivatives share.

With the rows $E$ of $R$ whose bounds are met, solution and multipliers solve

$$ \begin{pmatrix} Q & E^\top \\ E & 0 \end{pmatrix} \begin{pmatrix} z \\ y \end{pmatrix}
   = \begin{pmatrix} -q \\ t \end{pmatrix}, $$

and so do their derivatives, with other right-hand sides (B. Amos, J. Z. Kolter, arXiv:1703.00443, eq. 6, on the active
rows). `Saddle` holds Cholesky factors of $Q$ and of $S = E Q^{-1} E^\top$.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchimplicit.optim.quadprog.program import largest, times, times_transposed

_REFINEMENTS = 4
_ACCURATE = 1e-12
_DEFINITE = 1e-12
_DEPENDENT = 1e-12  # part of a row that no other explains


@dataclass
class Saddle:
    """Factored systems of a batch of programs with a definite `Q`, for their working rows.

    Attributes:
        Q: `(B, n, n)`.
        working: the working rows, gathered and filled up with zeros, `(B, a, n)`.
        index: which rows these are, `(B, a)`; whatever where filled up.
        valid: where not filled up, `(B, a)`.
        curvature: Cholesky factor of `Q`, `(B, n, n)`.
        complement: Cholesky factor of `S`, `(B, a, a)`.
        sound: whether the factors can be solved with, `(B,)`; those that do not exist are the identity.
    """

    Q: Tensor
    working: Tensor
    index: Tensor
    valid: Tensor
    curvature: Tensor
    complement: Tensor
    sound: Tensor

    @staticmethod
    def build(
        Q: Tensor, rows: Tensor, side: Tensor, curvature: Tensor | None = None, gram: Tensor | None = None
    ) -> Saddle:
        """Factors the systems.

        Args:
            Q: `(B, n, n)`.
            rows: `(B, r, n)`.
            side: not zero at the working rows, `(B, r)`.
            curvature: Cholesky factor of `Q` if it is known.
            gram: `R Q^{-1} R'` if it is known, `(B, r, r)`.
        """
        index, valid = compact(side)
        a, n = index.shape[1], Q.shape[1]
        working = rows.gather(1, index.unsqueeze(2).expand(-1, -1, n)) * valid.unsqueeze(2)
        if curvature is None:
            curvature = factor(Q)[0]
        if gram is None:
            half = torch.linalg.solve_triangular(curvature, working.mT, upper=False)
            system = half.mT @ half
        else:
            system = gram.gather(1, index.unsqueeze(2).expand(-1, -1, gram.shape[2]))
            system = system.gather(2, index.unsqueeze(1).expand(-1, a, -1))
            system = system * (valid.unsqueeze(2) & valid.unsqueeze(1))
        system.diagonal(dim1=1, dim2=2).add_((~valid).to(system.dtype))
        complement, sound = factor(system)
        pivots = complement.diagonal(dim1=1, dim2=2).square()
        sound = sound & (pivots > _DEPENDENT * system.diagonal(dim1=1, dim2=2)).all(1)
        return Saddle(Q, working, index, valid, curvature, complement, sound)

    def put(self, at: Tensor, other: Saddle) -> None:
        """Overwrites some of the programs by systems that may have another number of working rows."""
        width = max(self.index.shape[1], other.index.shape[1])
        self._widen(width)
        other._widen(width)
        for name in ("working", "index", "valid", "complement", "sound"):
            getattr(self, name)[at] = getattr(other, name)

    def _widen(self, width: int) -> None:
        more = width - self.index.shape[1]
        if more:
            self.working = pad(self.working, (0, 0, 0, more))
            self.index, self.valid = pad(self.index, (0, more)), pad(self.valid, (0, more))
            self.complement = pad(self.complement, (0, more, 0, more))
            self.complement.diagonal(dim1=1, dim2=2)[:, -more:] = 1.0

    def gather(self, values: Tensor) -> Tensor:
        """Values of all rows `(B, r)` as those of the working ones `(B, a)`."""
        return values.gather(1, self.index) * self.valid

    def scatter(self, values: Tensor, count: int) -> Tensor:
        """Values of the working rows `(B, a)` as those of all `count` rows, zero elsewhere."""
        return values.new_zeros(len(values), count).scatter_add_(1, self.index, values * self.valid)

    def solve(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solves for right-hand sides `r` `(B, n)` and `t` `(B, a)`, refined until rounding is all that is left.

        Returns:
            `z` `(B, n)`, `y` `(B, a)` and the relative residual, `(B,)`.
        """
        z, y, free = self._solve(r, t)
        reached = largest(t) + free  # rows may hold at zero what would go far without them
        left_r, left_t, best = self._residual(z, y, r, t, reached)
        for _ in range(_REFINEMENTS):
            rough = best > _ACCURATE
            if not bool(rough.any()):
                break
            dz, dy, _ = self._solve(left_r, left_t)
            left_r, left_t, residual = self._residual(z + dz, y + dy, r, t, reached)
            better = rough & (residual < best)  # where it got worse the system is singular
            z, y = torch.where(better.unsqueeze(1), z + dz, z), torch.where(better.unsqueeze(1), y + dy, y)
            best = torch.where(better, residual, best)
        return z, y, best

    def _residual(self, z: Tensor, y: Tensor, r: Tensor, t: Tensor, reached: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is left of the right-hand sides, and the largest part of it over the size of the terms, `(B,)`."""
        curved, pulled = times(self.Q, z), times_transposed(self.working, y)
        left_r, left_t = r - curved - pulled, t - times(self.working, z)
        size = largest(r) + largest(curved) + largest(pulled) + torch.finfo(r.dtype).tiny
        reached = reached + largest(z) + torch.finfo(r.dtype).tiny
        return left_r, left_t, torch.maximum(largest(left_r) / size, largest(left_t) / reached)

    def _solve(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solution, multipliers, and how far from zero the forces alone would lead, `(B,)`."""
        free = torch.cholesky_solve(r.unsqueeze(2), self.curvature)
        if not self.index.shape[1]:
            return free.squeeze(2), t, largest(free.squeeze(2))
        y = torch.cholesky_solve(torch.bmm(self.working, free) - t.unsqueeze(2), self.complement)
        z = free - torch.cholesky_solve(torch.bmm(self.working.mT, y), self.curvature)
        return z.squeeze(2), y.squeeze(2), largest(free.squeeze(2))


def factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors, and whether they exist; those that do not are the identity."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    sound = info == 0
    if not bool(sound.all()):
        identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        lower = torch.where(sound[:, None, None], lower, identity)
    return lower, sound


def is_definite(Q: Tensor, lower: Tensor, sound: Tensor) -> Tensor:
    """Whether a Cholesky factor is good enough to solve with, `(B,)`."""
    pivots = lower.diagonal(dim1=1, dim2=2)
    return sound & (pivots.amin(1).square() > _DEFINITE * Q.diagonal(dim1=1, dim2=2).amax(1))


def compact(side: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the entries that are not zero, `(B, a)`, filled up; and where not filled up."""
    on = side != 0
    count = on.sum(1)
    width = int(count.max()) if side.numel() else 0
    index = torch.argsort(on.to(torch.int8), dim=1, descending=True, stable=True)[:, :width]
    return index, torch.arange(width, device=side.device) < count.unsqueeze(1)
