"""Programs with a definite `Q`, and what every way to their solution needs of them, made once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program

_SMALL = 2**15  # entries of all matrices: below, operations are what costs time, and entries above


@dataclass(frozen=True)
class Prepared:
    """Programs and what follows from them and a factor.

    Attributes:
        program: the programs.
        cholesky: factor of `Q`, `(B, n, n)`.
        free: the solution without rows, `(B, n)`.
        w: what rows reach there, `(B, r, 1)`.
        gram: `R Q^{-1} R'`, `(B, r, r)`.
        own: its diagonal, `(B, r)`.
        energy: `q' Q^{-1} q`, `(B, 1, 1)`.
        in_place: whether rows that are not met stay in the matrices of those that are.
    """

    program: Program
    cholesky: Tensor
    free: Tensor
    w: Tensor
    gram: Tensor
    own: Tensor
    energy: Tensor
    in_place: bool

    @staticmethod
    def of(program: Program, cholesky: Tensor) -> Prepared:
        """Prepares programs, given a Cholesky factor of `Q`."""
        r = program.rows.shape[1]
        both = torch.cat((program.rows.mT, -program.q.unsqueeze(2)), 2)
        half = torch.linalg.solve_triangular(cholesky, both, upper=False)
        free = torch.linalg.solve_triangular(cholesky.mT, half[:, :, r:], upper=True).squeeze(2)
        (gram, w), (_, energy) = (part.split((r, 1), 2) for part in (half.mT @ half).split((r, 1), 1))
        own = gram.diagonal(dim1=1, dim2=2).clone()
        return Prepared(program, cholesky, free, w, gram, own, energy, r * r * len(gram) <= _SMALL)

    def take(self, index: Tensor) -> Prepared:
        """Some of the programs."""
        if len(index) == self.program.batch:
            return self
        parts = (self.cholesky, self.free, self.w, self.gram, self.own, self.energy)
        return Prepared(self.program.take(index), *(part[index] for part in parts), in_place=self.in_place)
