"""Programs with a definite `Q`, and what every way to their solution needs of them, made once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.kkt import solved
from torchimplicit.optim.quadprog.program import Program, times

_SMALL = 2**15  # entries of all matrices: below, operations are what costs time, and entries above


@dataclass(frozen=True)
class Prepared:
    """Programs and what follows from them and a factor.

    Attributes:
        program: the programs.
        cholesky: factor of `Q`, `(B, n, n)`.
        free: the solution without rows, `(B, n)`.
        w: what rows reach there, `(B, r)`.
        gram: `R Q^{-1} R'`, `(B, r, r)`.
        in_place: whether rows that are not met stay in the matrices of those that are.
    """

    program: Program
    cholesky: Tensor
    free: Tensor
    w: Tensor
    gram: Tensor
    in_place: bool

    @staticmethod
    def of(program: Program, cholesky: Tensor) -> Prepared:
        """Prepares programs, given a Cholesky factor of `Q`."""
        half = torch.linalg.solve_triangular(cholesky, program.rows.mT, upper=False)
        free, gram = -solved(cholesky, program.q), half.mT @ half
        return Prepared(program, cholesky, free, times(program.rows, free), gram, gram.numel() <= _SMALL)

    def take(self, index: Tensor) -> Prepared:
        """Some of the programs."""
        if len(index) == self.program.batch:
            return self
        parts = (part[index] for part in (self.cholesky, self.free, self.w, self.gram))
        return Prepared(self.program.take(index), *parts, in_place=self.in_place)
