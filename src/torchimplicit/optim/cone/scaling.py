"""Units in which slacks and multipliers have similar sizes, so that their difference keeps the digits of both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.optim.cone.cones import Cones
from torchimplicit.optim.cone.search import Data


@dataclass(frozen=True)
class Scaling:
    """Rows `D A x + D s = D b` and cost `c (P, q)`: the same `x`, the slack `D s`, the multiplier `c y / D`.

    Powers of two, so that nothing is rounded, the same for all rows of a cone, which is then the same cone.

    Attributes:
        rows: the diagonal of `D`, `(B, m)`.
        cost: `c`, `(B, 1)`.
    """

    rows: Tensor
    cost: Tensor

    @classmethod
    def of(cls, data: Data, cones: Cones) -> Scaling:
        """That which makes the longest row of every cone, and the largest coefficient of the cost, one in size."""
        held = data.map(torch.detach)
        lengths = torch.linalg.vector_norm(held.A, dim=2)
        parts = [(count, width) for count, width, _ in cones.parts()]
        pieces = lengths.split([count * width for count, width in parts], dim=1)
        longest = [
            piece.unflatten(1, part).amax(2, keepdim=True).expand(-1, *part).flatten(1)
            for piece, part in zip(pieces, parts, strict=True)
        ]
        cost = held.q.abs().amax(1, keepdim=True)
        if held.P is not None:
            cost = torch.maximum(cost, held.P.abs().flatten(1).amax(1, keepdim=True))
        return cls(_inverse(torch.cat([lengths[:, :0], *longest], dim=1)), _inverse(cost))

    def scale(self, data: Data) -> Data:
        """The data in these units; differentiable."""
        P = None if data.P is None else data.P * self.cost.unsqueeze(2)
        return Data(P, data.q * self.cost, data.A * self.rows.unsqueeze(2), data.b * self.rows)

    def slack(self, scaled: Tensor) -> Tensor:
        """The slack in the user's units."""
        return scaled / self.rows

    def dual(self, scaled: Tensor) -> Tensor:
        """The multiplier in the user's units."""
        return scaled * self.rows / self.cost

    def difference(self, slack: Tensor, dual: Tensor) -> Tensor:
        """`v = s - y` in these units, for slack and multiplier in the user's."""
        return slack * self.rows - dual * self.cost / self.rows


def _inverse(size: Tensor) -> Tensor:
    """The reciprocal, rounded to a power of two; one where there is none, for what is not finite shall not spread."""
    inverse = torch.exp2(-torch.log2(size).round())
    return torch.where(inverse.isfinite() & (inverse > 0), inverse, 1)
