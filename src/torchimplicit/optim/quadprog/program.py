"""A batch of quadratic programs in one form: rows of `R` between a lower and an upper bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 1e-11


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """`M v`, sample by sample: `(B, r, n)` and `(B, n)` give `(B, r)`."""
    return torch.bmm(matrix, vector.unsqueeze(2)).squeeze(2)


def times_transposed(matrix: Tensor, vector: Tensor) -> Tensor:
    """`M' v`, sample by sample: `(B, r, n)` and `(B, r)` give `(B, n)`."""
    return torch.bmm(vector.unsqueeze(1), matrix).squeeze(1)


def largest(rows: Tensor) -> Tensor:
    """The largest magnitude in every row, `(B,)`; zero for rows of no entries."""
    return rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))


@dataclass(frozen=True)
class Program:
    r"""$\min_z \tfrac12 z^\top Q z + q^\top z$ subject to $\ell \le R z \le u$, for every sample, in float64.

    Attributes:
        Q: symmetric, `(B, n, n)`.
        q: `(B, n)`.
        rows: `R`, `(B, r, n)`.
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
        """Some of the programs."""
        return self.mapped(lambda part: part[index])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Program:
        """The programs with every tensor changed."""
        Q, q, rows, lower, upper = map(change, self.tensors)
        return Program(Q, q, rows, lower, upper, self.equalities)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """`Q`, `q`, rows, lower and upper bounds."""
        return self.Q, self.q, self.rows, self.lower, self.upper

    def target(self, side: Tensor) -> Tensor:
        """The bound that every row meets: the upper one at side 1, the lower one at -1, zero at 0. `(B, r)`."""
        return torch.where(side > 0, self.upper, torch.where(side < 0, self.lower, 0.0))

    def residual(self, z: Tensor, y: Tensor) -> Tensor:
        """The largest violation of a Karush-Kuhn-Tucker condition over the size of its terms, `(B,)`.

        Args:
            z: solution, `(B, n)`.
            y: multipliers of the rows, positive at the upper and negative at the lower bound, `(B, r)`.
        """
        curved, pulled, reached = times(self.Q, z), times_transposed(self.rows, y), times(self.rows, z)
        size = 1 + torch.maximum(torch.maximum(largest(curved), largest(pulled)), largest(self.q))
        stationarity = largest(curved + self.q + pulled) / size
        above, below = (reached - self.upper).clamp_min(0), (self.lower - reached).clamp_min(0)
        feasibility = largest(above + below) / (1 + largest(reached))
        slack = largest(
            torch.minimum(self._gap(reached, y) / (1 + largest(reached)).unsqueeze(1), y.abs() / size.unsqueeze(1))
        )
        return torch.maximum(torch.maximum(stationarity, feasibility), slack)

    def doubt(self, z: Tensor, y: Tensor) -> Tensor:
        """As `residual`, every condition over the size of its own terms: badly scaled programs cannot hide in it.

        Where that is tiny, a ten thousandth of the largest size stands in for it.
        """
        terms = times(self.Q.abs(), z.abs()) + self.q.abs() + times_transposed(self.rows.abs(), y.abs())
        missed = times(self.Q, z) + self.q + times_transposed(self.rows, y)
        reached, reach = times(self.rows, z), times(self.rows.abs(), z.abs())
        apart = (reached - self.upper).clamp_min(0) + (self.lower - reached).clamp_min(0)
        length = self.rows.abs().amax(2)
        pull = (y * length).abs()
        pull = pull / largest(pull).clamp_min(torch.finfo(y.dtype).tiny).unsqueeze(1)
        slack = torch.minimum(_part(self._gap(reached, y), reach), pull)
        doubt = torch.maximum(
            largest(_part(missed, terms)), torch.maximum(largest(_part(apart, reach)), largest(slack))
        )
        residual = self.residual(z, y)
        return torch.where(residual < _ROUNDING, residual, doubt)  # a solution of zero has no size of its own

    def _gap(self, reached: Tensor, y: Tensor) -> Tensor:
        """How far the rows are from the bounds that their multipliers belong to, `(B, r)`."""
        return torch.where(y > 0, self.upper - reached, torch.where(y < 0, reached - self.lower, 0.0)).abs()


def _part(missed: Tensor, size: Tensor) -> Tensor:
    """What is missed over its size, `(B, k)`."""
    size = size + 1e-4 * largest(size).unsqueeze(1)
    return missed.abs() / size.clamp_min(torch.finfo(size.dtype).tiny)
