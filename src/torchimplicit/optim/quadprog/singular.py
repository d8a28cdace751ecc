r"""Saddle-point systems that may be singular: the same ones as `KKT`'s, for any convex `Q` and any rows.

Unknowns that a row with a single entry holds are taken out, and the rest is solved with a regularised factor and
refined without the regularisation. Each refinement is a step of the proximal point method, so that a consistent system
is solved whether or not its solution is unique; which one is found is the nearest to where it began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchimplicit.optim.quadprog.kkt import compact
from torchimplicit.optim.quadprog.program import Program, times, times_transposed

_SHIFTS = (1e-6, 1e-9, 1e-12)
_ROUNDS = 8
_REFINEMENTS = 12
_ACCURATE = 1e-15
_SOLVED = 1e-6
_RANK = 1e-9
_LOOSE = 1e-3  # part of a random force that the shift alone holds back: where nothing else does
_FORCES = 3


class Saddle(Protocol):
    """What `Singular` and the factor of a sparse program have in common."""

    holder: Tensor
    entry: Tensor

    def solve(
        self, r: Tensor, t: Tensor, shortest: bool = False, terms: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Singular.solve`."""
        ...


@dataclass
class Singular:
    """Factored systems of a batch of programs, for their working rows.

    Attributes:
        Q: `(B, n, n)`.
        rows: `(B, r, n)`.
        on: the working rows, `(B, r)`.
        holder: the row that holds an unknown, `(B, n)`; `r` where none does.
        entry: of that row, `(B, n)`; one where there is none.
        free: the unknowns that none holds, `(B, f)`, filled up, and where not filled up.
        work: the working rows that hold none, `(B, a)`, and where not filled up.
        scale: of the matrix, `(B, f + a)`.
        matrix: scaled, without the shifts, `(B, f + a, f + a)`.
        factors: of the matrix with them.
    """

    Q: Tensor
    rows: Tensor
    on: Tensor
    holder: Tensor
    entry: Tensor
    free: tuple[Tensor, Tensor]
    work: tuple[Tensor, Tensor]
    scale: Tensor
    matrix: Tensor
    factors: tuple[Tensor, Tensor]

    @staticmethod
    def of(program: Program, active: Tensor) -> Singular:
        """Factors the systems of the active rows of programs."""
        return Singular.build(program.Q, program.rows, active)

    @staticmethod
    def build(Q: Tensor, rows: Tensor, active: Tensor) -> Singular:
        """Factors the systems of the active rows."""
        on = active != 0
        holder, entry = _holders(rows, on)
        r = rows.shape[1]
        held = holder < r
        holds = torch.zeros(len(Q), r + 1, dtype=torch.bool, device=Q.device).scatter(1, holder, held)[:, :r]
        free, work = compact(~held), compact(on & ~holds)
        E = _chosen(rows, *work)
        top = _chosen(Q, *free).gather(2, free[0].unsqueeze(1).expand(-1, free[0].shape[1], -1))
        top = top * free[1].unsqueeze(1)
        E = E.gather(2, free[0].unsqueeze(1).expand(-1, E.shape[1], -1)) * free[1].unsqueeze(1)
        f, a = top.shape[1], E.shape[1]
        matrix = Q.new_zeros(len(Q), f + a, f + a)
        matrix[:, :f, :f], matrix[:, f:, :f], matrix[:, :f, f:] = top, E, E.mT
        scale = _balance(matrix)
        matrix = matrix * scale.unsqueeze(2) * scale.unsqueeze(1)
        factors = _factored(matrix, free[1], work[1], _SHIFTS[0])
        return Singular(Q, rows, on, holder, entry, free, work, scale, matrix, factors)

    def gather(self, values: Tensor) -> Tensor:
        """Values of all rows `(B, r)` as those of the working ones, in place."""
        return torch.where(self.on, values, 0.0)

    def scatter(self, values: Tensor, _: int) -> Tensor:
        """The inverse of `gather`."""
        return values

    @property
    def sound(self) -> Tensor:
        """Whether it can be solved with, `(B,)`: always."""
        return torch.ones(len(self.Q), dtype=torch.bool, device=self.Q.device)

    def solve(
        self, r: Tensor, t: Tensor, shortest: bool = False, terms: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Solves for right-hand sides `r` `(B, n)` and `t` `(B, r)`.

        Args:
            r: forces.
            t: what the rows are to reach.
            shortest: take the shortest least-squares solution where there is none.
            terms: the size of what `r` and `t` are the small difference of, `(B,)`.

        Returns:
            `z` `(B, n)`, `y` `(B, r)` and the relative residual, `(B,)`.
        """
        held, t = self.holder < self.on.shape[1], self.gather(t)
        known = torch.where(held, pad(t, (0, 1)).gather(1, self.holder) / self.entry, 0.0)
        force, short = r - times(self.Q, known), t - times(self.rows, known)
        f = self.free[0].shape[1]
        right = [x.gather(1, at) * valid for x, (at, valid) in ((force, self.free), (short, self.work))]
        right = torch.cat(right, 1)
        found, residual = self._refined(right, terms)
        found = self._shortest(found, residual, right) if shortest else found
        z = known.scatter_add(1, self.free[0], found[:, :f] * self.free[1])
        y = torch.zeros_like(t).scatter_add_(1, self.work[0], found[:, f:] * self.work[1])
        curved, pulled = times(self.Q, z), times_transposed(self.rows, y)
        left = torch.where(held, (r - curved - pulled) / self.entry, 0.0)
        return z, pad(y, (0, 1)).scatter(1, self.holder, left)[:, :-1], residual

    def loose(self) -> tuple[Tensor, Tensor]:
        """Whether unknowns, and whether multipliers, are not determined, `(B,)` each: random forces move them far.

        Several, for one may by chance be nearly at right angles to what nothing else holds.
        """
        f, generator = self.free[0].shape[1], torch.Generator().manual_seed(0)
        noise = torch.randn(
            self.matrix.shape[1], 2 * _FORCES, generator=generator, dtype=torch.float64, device="cpu"
        ).to(self.Q)
        noise = noise.expand(len(self.Q), -1, -1) * torch.cat((self.free[1], self.work[1]), 1).unsqueeze(2)
        noise[:, :f, _FORCES:], noise[:, f:, :_FORCES] = 0.0, 0.0
        factors = _factored(self.matrix, self.free[1], self.work[1], _SHIFTS[-1])
        moved = torch.linalg.ldl_solve(*factors, noise).abs() * _SHIFTS[-1] > _LOOSE
        return moved[:, :f, :_FORCES].any(2).any(1), moved[:, f:, _FORCES:].any(2).any(1)

    def _refined(self, right: Tensor, terms: Tensor | None) -> tuple[Tensor, Tensor]:
        """Refines with smaller and smaller shifts: a large one keeps rounding out of what nothing determines."""
        right = (right * self.scale).unsqueeze(2)
        found, left = torch.zeros_like(right), right.clone()  # its rows are written to, and `right` is read again
        size = right.abs().amax((1, 2)) if right.shape[1] else right.new_zeros(len(right))
        size = (size if terms is None else size + terms).clamp_min(torch.finfo(right.dtype).tiny)
        best = left.abs().amax((1, 2)) / size if right.shape[1] else torch.zeros_like(size)
        for shift in _SHIFTS:
            rough = torch.nonzero(best > _ACCURATE).flatten()
            if not len(rough):
                break
            part, matrix = (left[rough], found[rough], best[rough]), self.matrix[rough]
            factors = self._factors(shift, rough)
            part = _refine(matrix, factors, right[rough], size[rough], *part)
            left[rough], found[rough], best[rough] = part
        return found.squeeze(2) * self.scale, best

    def _factors(self, shift: float, index: Tensor) -> tuple[Tensor, Tensor]:
        """Of the matrix with a shift, for some programs; the first is kept."""
        if shift == _SHIFTS[0]:
            return self.factors[0][index], self.factors[1][index]
        return _factored(self.matrix[index], self.free[1][index], self.work[1][index], shift)

    def _shortest(self, found: Tensor, residual: Tensor, right: Tensor) -> Tensor:
        lost = torch.nonzero(~(residual <= _SOLVED)).flatten()
        if len(lost):
            inverse = torch.linalg.pinv(self.matrix[lost], rtol=_RANK, hermitian=True)
            found[lost] = times(inverse, right[lost] * self.scale[lost]) * self.scale[lost]
        return found


def _factored(matrix: Tensor, free: Tensor, work: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    shifts = torch.cat((torch.where(free, shift, 1.0), torch.where(work, -shift, -1.0)), 1).to(matrix)
    lower, pivots, _ = torch.linalg.ldl_factor_ex(matrix + torch.diag_embed(shifts))
    return lower, pivots


def _refine(
    matrix: Tensor, factors: tuple, right: Tensor, size: Tensor, left: Tensor, found: Tensor, best: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Refines until rounding is all that is left, or nothing is gained."""
    for _ in range(_REFINEMENTS):
        more = found + torch.linalg.ldl_solve(*factors, left)
        other = right - matrix @ more
        residual = other.abs().amax((1, 2)) / size
        better = residual < 0.7 * best
        take = better[:, None, None]
        found, left, best = (
            torch.where(take, more, found),
            torch.where(take, other, left),
            torch.where(better, residual, best),
        )
        if not bool(better.any()):
            break
    return left, found, best


def _holders(rows: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
    """The first working row with a single entry for every unknown, and that entry."""
    batch, r, n = rows.shape
    pattern = (rows != 0).any(0)
    single = pattern.sum(1) == 1
    column = pattern.to(torch.int8).argmax(1) if r else on.new_zeros(0, dtype=torch.int64)
    columns = column.expand(batch, -1)
    entry = rows.gather(2, columns.unsqueeze(2)).squeeze(2)
    number = torch.arange(r, device=rows.device).expand(batch, -1)
    number = torch.where(on & single & (entry != 0), number, r)
    holder = torch.full((batch, n), r, device=rows.device, dtype=torch.int64).scatter_reduce(1, columns, number, "amin")
    return holder, pad(entry, (0, 1), value=1.0).gather(1, holder)


def _chosen(matrix: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Rows of a matrix, zero where filled up."""
    return matrix.gather(1, index.unsqueeze(2).expand(-1, -1, matrix.shape[2])) * valid.unsqueeze(2)


def _balance(matrix: Tensor) -> Tensor:
    """Units in which the largest entry of every row and column is about one."""
    scale, size = matrix.new_ones(matrix.shape[:2]), matrix.abs()
    for _ in range(_ROUNDS if matrix.shape[1] else 0):
        most = (size * scale.unsqueeze(2) * scale.unsqueeze(1)).amax(1)
        scale = scale / torch.where(most > 0, most, 1.0).sqrt()
    return scale
