"""What the interior-point method knows of a batch of programs: their bounds, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass
class Bounds:
    """The bounds that rows have: the upper ones, followed by the lower ones if there are any.

    Attributes:
        two: whether there are lower ones; then `(B, 2 m)` below, otherwise `(B, m)`.
        bound: the bounds, those of the lower ones negated; zero where there is none.
        has: where there is a bound; None where there is everywhere.
    """

    two: bool
    bound: Tensor
    has: Tensor | None

    @staticmethod
    def of(lower: Tensor, upper: Tensor) -> tuple[Bounds, Tensor | None]:
        """Those of rows between bounds, `(B, m)`; and which rows have two equal ones and are equations, if any are."""
        two = bool(lower.isfinite().any())
        fixed = lower == upper if two else None
        fixed = None if fixed is None or not bool(fixed.any()) else fixed
        bound = torch.cat((upper, -lower), 1) if two else upper
        has = bound.isfinite()
        has = has if fixed is None else has & ~torch.cat((fixed, fixed), 1)
        bounds = Bounds(two, bound, None if bool(has.all()) else has)
        bounds.bound = bounds.only(bound, 0.0)
        return bounds, fixed

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

    def primal(self, w: Tensor, slack: Tensor) -> Tensor:
        """The primal residuals: how far slacks are from what they stand for."""
        return self.only(self.bound - self.spread(w) - slack, 0.0)

    def take(self, index: Tensor) -> Bounds:
        """Those of some of the programs."""
        return _taken(self, index)


class Equations(NamedTuple):
    """The rows whose two bounds are equal; all are `(B, m)`.

    Attributes:
        rows: which they are.
        target: what they ask for; zero elsewhere, as below.
        nu: their multipliers.
        missed: how far they are from being met.
    """

    rows: Tensor
    target: Tensor
    nu: Tensor
    missed: Tensor

    @classmethod
    def of(cls, rows: Tensor, bound: Tensor, y: Tensor, w: Tensor) -> Equations:
        """Those rows, at multipliers `y` where they come to `w`."""
        target = torch.where(rows, bound, 0.0)
        return cls(rows, target, torch.where(rows, y, 0.0), torch.where(rows, w - target, 0.0))

    def at(self, w: Tensor) -> Equations:
        """With what is missed where rows come to `w`."""
        return self._replace(missed=torch.where(self.rows, w - self.target, 0.0))

    def moved(self, y: Tensor, length: Tensor) -> Equations:
        """After a part, `(B, 1)`, of a step `y` of the multipliers that would meet them."""
        nu = self.nu + length * torch.where(self.rows, y, 0.0)
        return self._replace(nu=nu, missed=self.missed * (1 - length))


class Unknowns(NamedTuple):
    """What is known where unknowns are carried along.

    Attributes:
        z: unknowns, `(B, n)`.
        slope: of the Lagrangian, `(B, n)`.
        reach: what the rows reach, `(B, 1)`.
        force: what the slope is made of, `(B, 1)`.
    """

    z: Tensor
    slope: Tensor
    reach: Tensor
    force: Tensor


@dataclass
class Iterate:
    """Where the method stands, for the programs still on their way.

    Attributes:
        slack: to every bound; 1 where there is none.
        weight: the multiplier of every bound; 0 where there is none.
        primal: the residual of every bound, how far the slack is from what it stands for; 0 where there is no bound.
        met: which bounds the last step was heading for.
        floor: what the products of slack and multiplier tend to, `(B, 1)`.
        equations: None without such.
        unknowns: None where they are eliminated.
    """

    slack: Tensor
    weight: Tensor
    primal: Tensor
    met: Tensor
    floor: Tensor
    equations: Equations | None
    unknowns: Unknowns | None = None

    def take(self, index: Tensor) -> Iterate:
        """That of some of the programs."""
        return _taken(self, index)


def _taken(whole: Any, index: Tensor) -> Any:
    def part(value: Any) -> Any:
        if isinstance(value, tuple):
            return type(value)(*map(part, value))
        return value[index] if isinstance(value, Tensor) else value

    return type(whole)(*(part(getattr(whole, field.name)) for field in fields(whole)))
