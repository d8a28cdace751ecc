"""Units in which rows, columns, bounds and costs are about one: powers of two, so that nothing is rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program, largest

_ROUNDS = 12
_ALIKE = 0.5  # powers of two


@dataclass(frozen=True)
class Units:
    r"""With $z = D \hat z$, rows times $E$ and the objective over $\gamma$, all is about one.

    Rows and columns of the Karush-Kuhn-Tucker matrix get equal largest entries (D. Ruiz, RAL-TR-2001-034).

    Attributes:
        z: $D$, `(B, n)`.
        rows: $E$, `(B, r)`.
        cost: $\gamma$, `(B, 1)`.
    """

    z: Tensor
    rows: Tensor
    cost: Tensor

    @staticmethod
    def of(program: Program) -> Units:
        """Chooses them."""
        Q, R = program.Q.abs(), program.rows.abs()
        z, rows = torch.ones_like(program.q), torch.ones_like(program.lower)
        for _ in range(_ROUNDS):
            scaled = R * rows.unsqueeze(2) * z.unsqueeze(1)
            column, row = (Q * z.unsqueeze(2) * z.unsqueeze(1)).amax(1), rows
            if R.shape[1]:
                column, row = torch.maximum(column, scaled.amax(1)), scaled.amax(2)
            column, row = _positive(column), _positive(row)
            unlike = (torch.cat((column, row), 1).log2().abs() > _ALIKE).any(1, keepdim=True)
            if not bool(unlike.any()):
                break
            z, rows = torch.where(unlike, z / column.sqrt(), z), torch.where(unlike, rows / row.sqrt(), rows)
        size = _size(program, Q, z, rows)
        z, rows = _power(z * size), _power(rows / size)
        cost = torch.maximum(largest(program.q * z), (Q * z.unsqueeze(2) * z.unsqueeze(1)).amax((1, 2)))
        return Units(z, rows, _power(_positive(cost)).unsqueeze(1))

    @property
    def y(self) -> Tensor:
        """What multipliers are multiplied by, `(B, r)`."""
        return self.rows * self.cost

    def take(self, index: Tensor) -> Units:
        """Those of some of the programs."""
        return Units(self.z[index], self.rows[index], self.cost[index])

    def scaled(self, program: Program) -> Program:
        """The programs in these units."""
        across = self.z.unsqueeze(1)
        return Program(
            program.Q * self.z.unsqueeze(2) * across / self.cost.unsqueeze(2), program.q * self.z / self.cost,
            program.rows * self.rows.unsqueeze(2) * across,
            program.lower * self.rows, program.upper * self.rows, program.equalities,
        )  # fmt: skip


def _size(program: Program, Q: Tensor, z: Tensor, rows: Tensor) -> Tensor:
    """A size of the solution, `(B, 1)`: the largest bound, the nearer one of two, or where a bent cost would lead."""
    near = torch.minimum(program.lower.abs(), program.upper.abs()) * rows
    found = largest(torch.where(near.isfinite(), near, 0.0))
    bent = (Q * z.unsqueeze(2) * z.unsqueeze(1)).amax((1, 2))
    free = torch.where(bent > 0, largest(program.q * z) / bent, 0.0)
    return _positive(torch.where(found > 0, found, free)).unsqueeze(1)


def _positive(values: Tensor) -> Tensor:
    return torch.where((values > 0) & values.isfinite(), values, 1.0)


def _power(values: Tensor) -> Tensor:
    """The nearest power of two."""
    return torch.exp2(values.log2().round())
