r"""The linear systems of quadratic programming, with a factor that the forward solve and the derivatives share.

With the rows $E$ of $R$ whose bounds are met, solution and multipliers solve

$$ \begin{pmatrix} Q & E^\top \\ E & 0 \end{pmatrix} \begin{pmatrix} z \\ y \end{pmatrix}
   = \begin{pmatrix} -q \\ t \end{pmatrix}, $$

and so do their derivatives, with other right-hand sides (B. Amos, J. Z. Kolter, arXiv:1703.00443, eq. 6, on the active
rows). `KKT` holds Cholesky factors of $Q$ and of $S = E Q^{-1} E^\top$.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchimplicit.optim.quadprog.program import part, times, times_transposed

_REFINEMENTS = 4
_ACCURATE = 1e-12
_DEFINITE = 1e-12
FAR = 1e20  # times its own entry of the diagonal: a row that is to have no multiplier
_DEPENDENT = 1e-12  # part of a row that no other explains


class Factored(Protocol):
    """Systems that can be solved with."""

    def solve(self, r: Tensor, t: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
        """Solution, multipliers, and the relative residual, for two right-hand sides."""
        ...


@dataclass
class KKT:
    """Factored systems of a batch of programs with a definite `Q`, for their working rows.

    Attributes:
        Q: `(B, n, n)`.
        working: the working rows, gathered and filled up with zeros, `(B, a, n)`.
        index: which rows these are, `(B, a)`; others where filled up. None where all rows are in their places.
        valid: where not filled up, `(B, a)`.
        cholesky: factor of `Q`, `(B, n, n)`.
        complement: Cholesky factor of `S`, `(B, a, a)`.
        sound: whether the factors can be solved with, `(B,)`.
        careful: whether solutions may be small differences of what forces do and what rows take back, as the
            program's own is: these are refined once, whatever their residual.
    """

    Q: Tensor
    working: Tensor
    index: Tensor | None
    valid: Tensor
    cholesky: Tensor
    complement: Tensor
    sound: Tensor
    careful: bool = False

    @staticmethod
    def build(
        Q: Tensor, rows: Tensor, active: Tensor, cholesky: Tensor | None = None, gram: Tensor | None = None,
        in_place: bool = False,
    ) -> KKT:  # fmt: skip
        """Factors the systems.

        Args:
            Q: `(B, n, n)`.
            rows: `(B, r, n)`.
            active: not zero at the working rows, `(B, r)`.
            cholesky: factor of `Q` if it is known.
            gram: `R Q^{-1} R'` if it is known, `(B, r, r)`.
            in_place: leave all rows where they are: fewer operations, on larger matrices. Needs `gram`.
        """
        cholesky = factor(Q)[0] if cholesky is None else cholesky
        index, valid = (None, active != 0) if in_place else compact(active)
        working = (rows if index is None else chosen(rows, index)) * valid.unsqueeze(2)
        if gram is None:
            half = torch.linalg.solve_triangular(cholesky, working.mT, upper=False)
            system = half.mT @ half
        else:
            system = gram if index is None else crossed(chosen(gram, index), index)
        system, pivots = with_others_far(system, valid)
        complement, info = torch.linalg.cholesky_ex(system)
        sound = (info == 0) & (complement.diagonal(dim1=1, dim2=2).square() > _DEPENDENT * pivots).all(1)
        return KKT(Q, working, index, valid, cholesky, complement, sound)

    def put(self, at: Tensor, other: KKT) -> None:
        """Overwrites some of the programs by systems that may have another number of working rows."""
        width = max(self.valid.shape[1], other.valid.shape[1])
        self._widen(width)
        other._widen(width)
        for name in ("working", "index", "valid", "complement", "sound"):
            if getattr(self, name) is not None:
                getattr(self, name)[at] = getattr(other, name)
        self.careful = self.careful or other.careful

    def _widen(self, width: int) -> None:
        more = width - self.valid.shape[1]
        if more and self.index is not None:
            self.working = pad(self.working, (0, 0, 0, more))
            self.index, self.valid = pad(self.index, (0, more)), pad(self.valid, (0, more))
            self.complement = pad(self.complement, (0, more, 0, more))
            self.complement.diagonal(dim1=1, dim2=2)[:, -more:] = 1.0

    def gather(self, values: Tensor) -> Tensor:
        """Values of all rows `(B, r)` as those of the working ones `(B, a)`."""
        return (values if self.index is None else values.gather(1, self.index)) * self.valid

    def scatter(self, values: Tensor, count: int) -> Tensor:
        """Values of the working rows `(B, a)` as those of all `count` rows, zero elsewhere."""
        values = values * self.valid
        return (
            values if self.index is None else values.new_zeros(len(values), count).scatter_add_(1, self.index, values)
        )

    def solve(self, r: Tensor, t: Tensor, accurate: float = _ACCURATE) -> tuple[Tensor, Tensor, Tensor]:
        """Solves for right-hand sides `r` `(B, n)` and `t` `(B, a)`, refined to a residual, or as far as it goes.

        Returns:
            `z` `(B, n)`, `y` `(B, a)` and the relative residual, `(B,)`.
        """
        z, y, free = self._solve(r, t)
        left_r, left_t, best = self._residual(z, y, r, t, free)
        rough = best > accurate
        for step in range(self.careful + _REFINEMENTS):
            # The residual sees no more than the rounding of the forces. A step of refinement leaves that of the
            # solution (R. D. Skeel, Math. Comp. 35(151), 1980).
            blind = self.careful and not step
            if not (blind or bool(rough.any())):
                break
            dz, dy, _ = self._solve(left_r, left_t)
            left_r, left_t, residual = self._residual(z + dz, y + dy, r, t, free)
            # Where it got worse the system is singular, or rounding is all there is.
            better = residual <= best.clamp_min(_ACCURATE) if blind else rough & (residual < best)
            z, y = torch.where(better.unsqueeze(1), z + dz, z), torch.where(better.unsqueeze(1), y + dy, y)
            best = torch.where(better, residual, best)
            rough = better & (best > accurate)
        return z, y, best

    def _residual(self, z: Tensor, y: Tensor, r: Tensor, t: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is left of the right-hand sides, and the largest part of it over the size of the terms, `(B,)`.

        Rows may hold at zero what would go far without them: to `free`.
        """
        curved, pulled = times(self.Q, z), times_transposed(self.working, y)
        left_r, left_t = r - curved - pulled, t - times(self.working, z)
        forces = torch.stack((left_r, free, z, r, curved, pulled)).abs().amax(2)
        if not t.shape[1]:
            return left_r, left_t, part(forces[0], forces[3:].sum(0))
        rows = torch.stack((left_t, t)).abs().amax(2)
        return (
            left_r,
            left_t,
            torch.maximum(part(forces[0], forces[3:].sum(0)), part(rows[0], rows[1] + forces[1:3].sum(0))),
        )

    def _solve(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solution, multipliers, and where the forces alone would lead, `(B, n)`."""
        free = solved(self.cholesky, r)
        if not self.valid.shape[1]:
            return free, t, free
        y = solved(self.complement, times(self.working, free) - t)
        return free - solved(self.cholesky, times_transposed(self.working, y)), y, free


def solved(lower: Tensor, right: Tensor) -> Tensor:
    """Solves with Cholesky factors, sample by sample: `(B, n, n)` and `(B, n)` give `(B, n)`."""
    return torch.cholesky_solve(right.unsqueeze(2), lower).squeeze(2)


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


def with_others_far(system: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix of the working rows alone: the others get a huge entry of the diagonal, which holds them at zero.

    Args:
        system: `R Q^{-1} R'`, `(B, a, a)`.
        valid: which of these are working rows, `(B, a)`.

    Returns:
        The matrix, and its diagonal.
    """
    own = system.diagonal(dim1=1, dim2=2)
    diagonal = torch.where(valid, own, FAR * own.clamp_min(1 / FAR))
    return system.diagonal_scatter(diagonal, dim1=1, dim2=2), diagonal


def chosen(matrix: Tensor, index: Tensor) -> Tensor:
    """Some of the rows of a matrix: `(B, r, n)` and `(B, a)` give `(B, a, n)`."""
    batch, r, n = matrix.shape
    first = r * torch.arange(batch, device=index.device).unsqueeze(1)
    return matrix.reshape(-1, n).index_select(0, (index + first).flatten()).view(*index.shape, n)


def crossed(rows: Tensor, index: Tensor) -> Tensor:
    """The columns of the same numbers: `(B, a, r)` and `(B, a)` give `(B, a, a)`."""
    return rows.gather(2, index.unsqueeze(1).expand(-1, index.shape[1], -1))


def compact(active: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the entries that are not zero, `(B, a)`, filled up; and where not filled up."""
    on = active != 0
    count = on.sum(1)
    width = int(count.max()) if active.numel() else 0
    index = torch.argsort(on.to(torch.int8), dim=1, descending=True, stable=True)[:, :width]
    return index, torch.arange(width, device=active.device) < count.unsqueeze(1)
