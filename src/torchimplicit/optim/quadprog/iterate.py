"""What the interior-point method knows of a batch of programs: their bounds, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class Bounds:
    """The bounds that rows have: the upper ones, followed by the lower ones if there are any.

    Attributes:
        two: whether there are lower ones; then `(B, 2 m)` below, otherwise `(B, m)`.
        bound: the bounds, those of the lower ones negated; zero where there is none.
        has: where there is a bound; None where there is everywhere.
        fixed: rows whose two bounds are equal, `(B, m)`: those are equations. None without such.
        target: what these equations ask for, `(B, m)`; None without such.
    """

    two: bool
    bound: Tensor
    has: Tensor | None
    fixed: Tensor | None
    target: Tensor | None

    @staticmethod
    def of(lower: Tensor, upper: Tensor) -> Bounds:
        """Those of rows between bounds, `(B, m)`."""
        two = bool(lower.isfinite().any())
        fixed = lower == upper if two else None
        fixed = None if fixed is None or not bool(fixed.any()) else fixed
        bound = torch.cat((upper, -lower), 1) if two else upper
        has = bound.isfinite()
        has = has if fixed is None else has & ~torch.cat((fixed, fixed), 1)
        target = None if fixed is None else torch.where(fixed, upper, 0.0)
        bounds = Bounds(two, bound, None if bool(has.all()) else has, fixed, target)
        bounds.bound = bounds.only(bound, 0.0)
        return bounds

    def spread(self, rows: Tensor) -> Tensor:
        """A value of the rows as one of their bounds, that of the lower ones negated."""
        return torch.cat((rows, -rows), 1) if self.two else rows

    def joined(self, values: Tensor) -> Tensor:
        """The transpose of `spread`: upper minus lower."""
        return torch.sub(*values.chunk(2, 1)) if self.two else values

    def summed(self, values: Tensor) -> Tensor:
        """Upper plus lower."""
        return torch.add(*values.chunk(2, 1)) if self.two else values

    def only(self, values: Tensor, otherwise: float) -> Tensor:
        """The values where there is a bound."""
        return values if self.has is None else torch.where(self.has, values, otherwise)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the bounds that there are, `(B,)`."""
        return values.mean(1) if self.has is None else (values * self.has).sum(1) / self.has.sum(1).clamp_min(1)

    def residuals(self, w: Tensor, slack: Tensor) -> tuple[Tensor, Tensor | None]:
        """The primal residuals: how far slacks are from what they stand for, and equations from being met."""
        equations = None if self.fixed is None else torch.where(self.fixed, w - self.target, 0.0)  # type: ignore[operator]
        return self.only(self.bound - self.spread(w) - slack, 0.0), equations

    def take(self, index: Tensor) -> Bounds:
        """Those of some of the programs."""
        return _taken(self, index)


@dataclass
class Iterate:
    """Where the method stands, for the programs still on their way.

    Attributes:
        slack: to every bound; 1 where there is none.
        weight: the multiplier of every bound; 0 where there is none.
        primal: the residual of every bound, how far the slack is from what it stands for; 0 where there is no bound.
        met: which bounds the last step was heading for.
        floor: what the products of slack and multiplier tend to, `(B, 1)`.
        nu: the multipliers of equations, `(B, m)`; None without such.
        equations: their residuals, how far they are from being met, `(B, m)`; None without such.
        z: unknowns, `(B, n)`; None where they are eliminated, and so for the rest.
        slope: of the Lagrangian, `(B, n)`.
        sizes: what the rows reach and what the slope is made of, `(B, 1)` each.
    """

    slack: Tensor
    weight: Tensor
    primal: Tensor
    met: Tensor
    floor: Tensor
    nu: Tensor | None
    equations: Tensor | None
    z: Tensor | None = None
    slope: Tensor | None = None
    sizes: tuple[Tensor, Tensor] | None = None

    def take(self, index: Tensor) -> Iterate:
        """That of some of the programs."""
        return _taken(self, index)


def _taken(whole: Any, index: Tensor) -> Any:
    def part(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(part, value))
        return value[index] if isinstance(value, Tensor) else value

    return type(whole)(*(part(getattr(whole, field.name)) for field in fields(whole)))
