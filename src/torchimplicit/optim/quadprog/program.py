"""A batch of quadratic programs in one form: rows of `R` between a lower and an upper bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.sparse_matrix import SparseMatrix

_LEAST = 5e-324  # the smallest number above zero


def times(matrix: Tensor | SparseMatrix, vector: Tensor) -> Tensor:
    """`M v`, sample by sample: `(B, r, n)` and `(B, n)` give `(B, r)`."""
    if isinstance(matrix, SparseMatrix):
        return matrix.times(vector)
    return torch.bmm(vector.unsqueeze(1), matrix.mT).squeeze(1)  # a row takes half as long as a column


def times_transposed(matrix: Tensor | SparseMatrix, vector: Tensor) -> Tensor:
    """`M' v`, sample by sample: `(B, r, n)` and `(B, r)` give `(B, n)`."""
    if isinstance(matrix, SparseMatrix):
        return matrix.times_transposed(vector)
    return torch.bmm(vector.unsqueeze(1), matrix).squeeze(1)


def largest(rows: Tensor, keepdim: bool = False) -> Tensor:
    """The largest magnitude in every row, `(B,)` or `(B, 1)`; zero for rows of no entries."""
    shape = (len(rows), 1) if keepdim else (len(rows),)
    return rows.abs().amax(1, keepdim) if rows.shape[1] else rows.new_zeros(shape)


def part(missed: Tensor, size: Tensor) -> Tensor:
    """What is missed over its size; nothing over nothing is zero. `(B, k)`."""
    return missed / size.clamp_min(_LEAST)


@dataclass(frozen=True)
class Program:
    r"""$\min_z \tfrac12 z^\top Q z + q^\top z$ subject to $\ell \le R z \le u$, for every sample, in float64.

    Attributes:
        Q: symmetric, `(B, n, n)`; a `SparseMatrix` in sparse programs.
        q: `(B, n)`.
        rows: `R`, `(B, r, n)`; a `SparseMatrix` in sparse programs.
        lower: `(B, r)`, minus infinity where there is none.
        upper: `(B, r)`, infinity where there is none.
        equalities: how many rows, the first ones, are equations; their bounds are equal.
    """

    Q: Tensor
    q: Tensor
    rows: Tensor
    lower: Tensor
    upper: Tensor
    equalities: int

    @property
    def batch(self) -> int:
        """How many programs."""
        return len(self.q)

    def take(self, index: Tensor) -> Program:
        """Some of the programs, in their order."""
        return self if len(index) == self.batch else self.mapped(lambda part: part[index])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Program:
        """The programs with every tensor changed."""
        Q, q, rows, lower, upper = map(change, self.tensors)
        return Program(Q, q, rows, lower, upper, self.equalities)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """`Q`, `q`, rows, lower and upper bounds."""
        return self.Q, self.q, self.rows, self.lower, self.upper

    @property
    def sparse(self) -> tuple[SparseMatrix, SparseMatrix]:
        """`Q` and rows of a sparse program, as what they are."""
        return cast("tuple[SparseMatrix, SparseMatrix]", (self.Q, self.rows))

    @property
    def is_sparse(self) -> bool:
        """Whether the matrices are `SparseMatrix`, which all programs share."""
        return isinstance(self.rows, SparseMatrix)

    def target(self, active: Tensor) -> Tensor:
        """The bound that every row meets: the upper one at 1, the lower one at -1, zero at 0. `(B, r)`."""
        return torch.where(active > 0, self.upper, torch.where(active < 0, self.lower, 0.0))

    @cached_property
    def locked(self) -> Tensor:
        """Which rows are equations, but for empty ones, bool `(B, r)`."""
        return (self.lower == self.upper) & self.filled

    @cached_property
    def filled(self) -> Tensor:
        """Which rows are not empty, bool `(B, r)`."""
        return self.length > 0

    @cached_property
    def length(self) -> Tensor:
        """The largest magnitude in every row, `(B, r)`."""
        return self.rows.abs().amax(2)  # vector_norm takes thirty times as long


@dataclass(frozen=True)
class Terms:
    """What the conditions of programs are made of, at points and multipliers.

    Attributes:
        curved: `Q z`, `(B, n)`.
        pulled: `R'y`, `(B, n)`.
        slope: of the Lagrangian, `(B, n)`.
        reached: `R z`, `(B, r)`.
        missed: how far that is from where it must be: between the bounds, or at the one of the multiplier. `(B, r)`.
        size: of what is reached and of where it must be, `(B, r)`.
        most: the largest that is reached, `(B, 1)`.
        extent: the largest that a row could reach, `(B, r)`.
        farthest: the largest unknown, `(B, 1)`.
    """

    curved: Tensor
    pulled: Tensor
    slope: Tensor
    reached: Tensor
    missed: Tensor
    size: Tensor
    most: Tensor
    extent: Tensor
    farthest: Tensor

    @staticmethod
    def of(program: Program, z: Tensor, y: Tensor, pulled: Tensor | None = None) -> Terms:
        """Evaluates them at `z` `(B, n)` and `y` `(B, r)`; `R'y` may be known."""
        curved, reached = times(program.Q, z), times(program.rows, z)
        pulled = times_transposed(program.rows, y) if pulled is None else pulled
        slope = curved + program.q + pulled
        lower = torch.where(y > 0, program.upper, program.lower)
        wanted = torch.clamp(reached, lower, torch.where(y < 0, program.lower, program.upper))
        height = reached.abs()
        most = height.amax(1, keepdim=True) if height.shape[1] else slope.new_zeros(len(slope), 1)
        farthest, missed = largest(z, keepdim=True), (reached - wanted).abs()
        size, extent = torch.maximum(height, wanted.abs()), program.length * farthest
        return Terms(curved, pulled, slope, reached, missed, size, most, extent, farthest)
