"""The saddle-point systems of a sparse program: see `Singular`, which solves the same ones where they are dense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program, times, times_transposed
from torchimplicit.optim.quadprog.sparse.factor import Factor
from torchimplicit.optim.quadprog.sparse_matrix import SparseMatrix
from torchimplicit.optim.quadprog.units import Units


class SparseKKT:
    """The factored system of one program, for its working rows; unknowns that a row of one entry holds are taken out.

    Args:
        program: one program, its matrices `SparseMatrix`, in units in which all is about one.
        active: not zero at the working rows, `(1, r)`.
    """

    def __init__(self, program: Program, active: Tensor):
        """Factors it."""
        Q, R = program.sparse
        self.program, self.on = program, active[0] != 0
        self.holder, self.entry = _holders(R, self.on)
        self.held = self.holder < R.size[0]
        holds = torch.zeros(R.size[0] + 1, dtype=torch.bool, device="cpu").index_fill(0, self.holder, True)[:-1]
        self.work = self.on & ~holds
        column, row = (~self.held).cumsum(0) - 1, self.work.cumsum(0) - 1
        free, working = int((~self.held).sum()), int(self.work.sum())
        inner = ~self.held[Q.row] & ~self.held[Q.column]
        kept = self.work[R.row] & ~self.held[R.column]
        below, at = free + row[R.row[kept]], column[R.column[kept]]
        self.factor = Factor(
            torch.cat((Q.values[inner], R.values[kept], R.values[kept])),
            torch.cat((column[Q.row[inner]], below, at)), torch.cat((column[Q.column[inner]], at, below)),
            free, working,
        )  # fmt: skip

    def solve(
        self, r: Tensor, t: Tensor, shortest: bool = False, terms: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Solves for right-hand sides.

        Args:
            r: forces, `(1, n)`.
            t: what the working rows are to reach, `(1, r)`.
            shortest: take the shortest least-squares solution where there is none.
            terms: the size of what `r` and `t` are the small difference of, `(1,)`.

        Returns:
            `z` `(1, n)`, `y` `(1, r)` and the relative residual, `(1,)`.
        """
        Q, R = self.program.Q, self.program.rows
        t = torch.where(self.on, t, 0.0)
        known = torch.where(self.held, self._of_holder(t) / self.entry, 0.0)
        force, short = r - times(Q, known), t - times(R, known)
        right = torch.cat((force[:, ~self.held], short[:, self.work]), 1).squeeze(0)
        found, residual = self.factor.shortest(right) if shortest else self.factor.solve(right, float(terms or 0))
        z, y = known.clone(), torch.zeros_like(t)
        z[0, ~self.held], y[0, self.work] = found.split([self.factor.first, len(found) - self.factor.first])
        left = (r - times(Q, z) - times_transposed(R, y)) / self.entry
        y[0, self.holder[self.held]] = left[0, self.held]
        return z, y, torch.tensor([residual], dtype=z.dtype, device="cpu")

    def loose(self) -> tuple[bool, bool]:
        """Whether the unknowns, and whether the multipliers, are not determined."""
        return self.factor.loose()

    def _of_holder(self, values: Tensor) -> Tensor:
        return torch.cat((values, values.new_zeros(1, 1)), 1)[:, self.holder]


@dataclass(frozen=True)
class Systems:
    """The systems of the derivatives of a batch of programs, as they are stated.

    Attributes:
        parts: those of every program, and the units that they are in; None for programs without a solution.
    """

    parts: list[tuple[SparseKKT, Units] | None]

    def solve(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solves `Q z + R'y = r`, `R z = t` on the working rows, `y = 0` on the others; zero where there is no system.

        Args:
            r: `(B, n)`.
            t: `(B, r)`.

        Returns:
            `z` `(B, n)`, `y` `(B, r)` and the relative residual, `(B,)`.
        """
        z, y, residual = torch.zeros_like(r), torch.zeros_like(t), torch.zeros_like(r[:, 0])
        for sample, part in enumerate(self.parts):
            if part is not None:
                (kkt, units), at = part, slice(sample, sample + 1)
                forces, reached = r[at].cpu() * units.z / units.cost, t[at].cpu() * units.rows
                dz, dy, residual[at] = kkt.solve(forces, reached, shortest=True)
                z[at], y[at] = dz * units.z, dy * units.y
        return z, y, residual


def _holders(R: SparseMatrix, on: Tensor) -> tuple[Tensor, Tensor]:
    """The first working row with a single entry for every unknown, `(n,)`, r where there is none; and that entry."""
    r, n = R.size
    some = R.values != 0
    count = torch.bincount(R.row[some], minlength=r)
    single = some & (on & (count == 1))[R.row]
    row, column = R.row[single], R.column[single]
    holder = torch.full((n,), r, dtype=torch.int64, device="cpu").scatter_reduce(0, column, row, "amin")
    entry, first = R.values.new_ones(n), holder[column] == row
    entry[column[first]] = R.values[single][first]
    return holder, entry
