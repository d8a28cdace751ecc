"""A sparse matrix that all programs of a batch share: what units, verdicts and certificates need of it, and no more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseMatrix:
    """A matrix by its entries (COO), with the names that a dense one `(1, r, n)` has for the same.

    Attributes:
        values: `(k,)`.
        row: of every entry, int64 `(k,)`.
        column: of every entry, int64 `(k,)`; no place twice.
        size: `r` and `n`.
    """

    values: Tensor
    row: Tensor
    column: Tensor
    size: tuple[int, int]

    @staticmethod
    def of(matrix: Tensor) -> SparseMatrix:
        """Those of a dense matrix that are not zero, `(r, n)`."""
        row, column = matrix.nonzero(as_tuple=True)
        return SparseMatrix(matrix[row, column], row, column, (matrix.shape[0], matrix.shape[1]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """That of a batch of one."""
        return (1, *self.size)

    def abs(self) -> SparseMatrix:
        """All magnitudes."""
        return replace(self, values=self.values.abs())

    def times(self, vector: Tensor) -> Tensor:
        """`M v`: `(B, n)` gives `(B, r)`."""
        return vector.new_zeros(len(vector), self.size[0]).index_add(1, self.row, vector[:, self.column] * self.values)

    def times_transposed(self, vector: Tensor) -> Tensor:
        """`M' v`: `(B, r)` gives `(B, n)`."""
        return vector.new_zeros(len(vector), self.size[1]).index_add(1, self.column, vector[:, self.row] * self.values)

    def amax(self, dim: Any) -> Tensor:
        """The largest of every column (1), of every row (2), or of all (both), of a matrix of magnitudes."""
        if isinstance(dim, tuple):
            return self.values.amax().unsqueeze(0) if len(self.values) else self.values.new_zeros(1)
        at, count = (self.column, self.size[1]) if dim == 1 else (self.row, self.size[0])
        return self.values.new_zeros(count).scatter_reduce(0, at, self.values, "amax").unsqueeze(0)

    def outer(self, column: Tensor, row: Tensor) -> Tensor:
        """The entries of `c r'` on this pattern, summed over the batch: `(B, r)` and `(B, n)` give `(k,)`."""
        return (column[:, self.row] * row[:, self.column]).sum(0)

    def skew(self) -> Tensor:
        """The largest magnitude in `M - M'`, `(1,)`."""
        n = self.size[1]
        place = torch.cat((self.row * n + self.column, self.column * n + self.row))
        place, which = torch.unique(place, return_inverse=True)
        apart = self.values.new_zeros(len(place)).index_add(0, which, torch.cat((self.values, -self.values)))
        return replace(self, values=apart.abs()).amax((1, 2))

    def if_finite(self) -> SparseMatrix:
        """The matrix, or zero on its pattern where some entry is no number."""
        return replace(self, values=torch.where(self.values.isfinite().all(), self.values, 0.0))

    def detach(self) -> SparseMatrix:
        """Without a graph."""
        return replace(self, values=self.values.detach())

    def cpu(self) -> SparseMatrix:
        """On the CPU."""
        return SparseMatrix(self.values.cpu(), self.row.cpu(), self.column.cpu(), self.size)

    def sum(self, _: Any) -> Tensor:
        """Of all entries, `(1,)`."""
        return self.values.sum().unsqueeze(0)

    def __mul__(self, factor: Tensor) -> SparseMatrix:
        """Every row, or every column, times a number: `(1, r, 1)` or `(1, 1, n)`."""
        return replace(self, values=self.values * self._spread(factor))

    def __truediv__(self, factor: Tensor) -> SparseMatrix:
        return replace(self, values=self.values / self._spread(factor))

    def __getitem__(self, which: Any) -> SparseMatrix:
        """Some of the programs, which share the matrix; or, for `[:, rows]`, a range of its rows."""
        if not isinstance(which, tuple):
            return self
        first, last, _ = which[1].indices(self.size[0])
        kept = (self.row >= first) & (self.row < last)
        return SparseMatrix(self.values[kept], self.row[kept] - first, self.column[kept], (last - first, self.size[1]))

    def _spread(self, factor: Tensor) -> Tensor:
        """What every entry is multiplied by: by its row `(1, r, 1)`, its column `(1, 1, n)`, or all by the same."""
        if factor.shape[1:] == (1, 1):
            return factor[0, 0, 0]
        return factor[0, self.row, 0] if factor.shape[2] == 1 else factor[0, 0, self.column]
