r"""Mehrotra's predictor-corrector method on the multipliers alone, every program at its own pace.

Solution and equations are eliminated once: with $w = R z$ at the minimum for given multipliers $y$ of the
inequalities, $w = w_0 - K y$. A step then solves $(K + D^{-1})\, \Delta y = \rho$, with $D$ the multipliers over
the slacks, and never touches the unknowns (S. Mehrotra, SIAM J. Optim. 2(4), 1992; the reduction is classical for
monotone complementarity problems). A row between two bounds is one row of $K$, with a slack to each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_FREE = 1e30  # D^{-1} of a row without bounds
_HAIR = 1e-9  # D^{-1} of an equation
_TO_THE_WALL = 0.995
_NEAR = 1e-7  # weighs how far products are from the floor, as a part of it, against infeasibility


class Reduction(Protocol):
    """`K`, in a form that can solve `(K + D^{-1}) y = r`."""

    def take(self, index: Tensor) -> Reduction:
        """That of some of the programs."""
        ...

    def times(self, y: Tensor) -> Tensor:
        """`K y`, `(B, m)`."""
        ...

    def factor(self, inverse: Tensor) -> Factored:
        """Prepares `K + D^{-1}` for the diagonal `D^{-1}`, `(B, m)`."""
        ...


class Factored(Protocol):
    """`K + D^{-1}`, factored."""

    def solve(self, right: Tensor) -> Tensor:
        """`(K + D^{-1})^{-1} r`, `(B, m)`."""
        ...


@dataclass
class Sides:
    """The bounds that rows have: the upper ones, followed by the lower ones if there are any.

    Attributes:
        two: whether there are lower ones; then `(B, 2 m)` below, otherwise `(B, m)`.
        has: where there is a bound; None where there is everywhere.
        fixed: rows whose two bounds are equal, `(B, m)`: those are equations. None without such.
    """

    two: bool
    has: Tensor | None
    fixed: Tensor | None

    def spread(self, rows: Tensor) -> Tensor:
        """A value of the rows as one of their bounds, that of the lower ones negated."""
        return torch.cat((rows, -rows), 1) if self.two else rows

    def joined(self, sides: Tensor) -> Tensor:
        """The transpose of `spread`: upper minus lower."""
        return torch.sub(*sides.chunk(2, 1)) if self.two else sides

    def summed(self, sides: Tensor) -> Tensor:
        """Upper plus lower."""
        return torch.add(*sides.chunk(2, 1)) if self.two else sides

    def only(self, sides: Tensor, otherwise: float) -> Tensor:
        """The values where there is a bound."""
        return sides if self.has is None else torch.where(self.has, sides, otherwise)

    def mean(self, sides: Tensor) -> Tensor:
        """The mean over the bounds that there are, `(B,)`."""
        return sides.mean(1) if self.has is None else (sides * self.has).sum(1) / self.has.sum(1).clamp_min(1)

    def take(self, index: Tensor) -> Sides:
        """Those of some of the programs."""
        return Sides(self.two, *(None if part is None else part[index] for part in (self.has, self.fixed)))


@dataclass
class Iterate:
    """Where the method stands, for the programs still on their way.

    Attributes:
        slack: to every bound; 1 where there is none.
        weight: the multiplier of every bound; 0 where there is none.
        miss: how far the slack is from what it stands for; 0 where there is no bound.
        met: which bounds the last step was heading for.
        floor: what the products of slack and multiplier tend to, `(B, 1)`.
        pull: multipliers of the rows that are equations, `(B, m)`; None without such.
        off: how far these are from being met, `(B, m)`; None without such.
    """

    slack: Tensor
    weight: Tensor
    miss: Tensor
    met: Tensor
    floor: Tensor
    pull: Tensor | None
    off: Tensor | None

    def take(self, index: Tensor) -> Iterate:
        """That of some of the programs."""
        parts = (self.slack, self.weight, self.miss, self.met, self.floor, self.pull, self.off)
        return Iterate(*(None if part is None else part[index] for part in parts))  # type: ignore[arg-type]


@dataclass
class Interior:
    """What the method found, for every program.

    Attributes:
        y: multipliers, `(B, m)`.
        weight: those of the upper bounds, followed by those of the lower ones if there are any.
        side: the bound that every row seems to meet: 1 upper, -1 lower, 0 none, `(B, m)`.
        steps: `(B,)`.
    """

    y: Tensor
    weight: Tensor
    side: Tensor
    steps: Tensor


def interior(
    reduction: Reduction, w: Tensor, lower: Tensor, upper: Tensor, tol: float, max_steps: int, floor: float = 0.0
) -> Interior:
    """Runs the method to a residual of `tol` in its own scale (that of the largest violation at `y = 0`).

    Args:
        reduction: `K`, with a unit diagonal.
        w: `R z` at `y = 0`, `(B, m)`.
        lower: `(B, m)`, may be infinite.
        upper: `(B, m)`, may be infinite.
        tol: when to stop.
        max_steps: when to give up.
        floor: what every slack times its multiplier comes to: zero at the solution, more on the central path.
    """
    violation = torch.maximum((w - upper).clamp_min(0), (lower - w).clamp_min(0)).amax(1, keepdim=True)
    scale = torch.where(violation > 0, violation, 1.0)
    method, now = _begin(reduction, w / scale, lower / scale, upper / scale, floor / scale.square())
    index = torch.arange(len(w), device=w.device)
    found = Interior(
        torch.zeros_like(w),
        torch.zeros_like(now.weight),
        torch.zeros_like(w, dtype=torch.int8),
        torch.zeros_like(index),
    )
    for step in range(max_steps + 1):
        products = now.slack * now.weight
        gap, left = method.residual(now, products)
        stop = ~(left > tol) if step < max_steps else torch.ones_like(left, dtype=torch.bool)  # also where NaN appeared
        stopped = int(stop.sum())
        if stopped:
            at = torch.nonzero(stop).flatten()
            rows, here, sides = index[at], now.take(at), method.sides.take(at)
            found.y[rows], found.weight[rows], found.steps[rows] = _multipliers(here, sides), here.weight, step
            found.side[rows] = _side(here, sides)
            if stopped == len(index):
                break
            going = torch.nonzero(~stop).flatten()
            index, now, reduction = index[going], now.take(going), reduction.take(going)
            method.sides, products, gap = method.sides.take(going), products[going], gap[going]
        now = method.step(reduction, now, products, gap)
    return Interior(found.y * scale, found.weight * scale, found.side, found.steps)


def _begin(reduction: Reduction, w: Tensor, lower: Tensor, upper: Tensor, floor: Tensor) -> tuple[_Method, Iterate]:
    """One full affine step from slacks and multipliers of one, which are then lifted off the walls."""
    two = bool(lower.isfinite().any())
    fixed = lower == upper if two else None
    fixed = None if fixed is None or not bool(fixed.any()) else fixed
    sides = Sides(two, None, fixed)
    bound = torch.cat((upper, -lower), 1) if two else upper
    has = bound.isfinite()
    has = has if fixed is None else has & ~torch.cat((fixed, fixed), 1)
    sides.has = None if bool(has.all()) else has
    bound, slack = sides.only(bound, 0.0), torch.ones_like(bound)
    miss, weight = sides.only(bound - sides.spread(w) - slack, 0.0), has.to(w.dtype)
    off = None if fixed is None else torch.where(fixed, w - upper, 0.0)
    now = Iterate(slack, weight, miss, has, floor, None if fixed is None else torch.zeros_like(w), off)
    method = _Method(sides, bool((floor > 0).any()))
    _, _, more_slack, more_weight = method.direction(method.factor(reduction, now), now, -weight)
    now.slack = sides.only(_lifted(sides.only(slack + more_slack, 1.0)), 1.0)
    now.weight = sides.only(_lifted(sides.only(weight + more_weight, 0.0)), 0.0)
    now.met = now.weight > now.slack
    w = w - reduction.times(sides.joined(now.weight))
    now.miss = sides.only(bound - sides.spread(w) - now.slack, 0.0)
    now.off = None if fixed is None else torch.where(fixed, w - upper, 0.0)
    return method, now


@dataclass
class _Method:
    """A step of the method.

    Attributes:
        sides: which bounds there are.
        central: whether the products tend to a floor that is not zero.
    """

    sides: Sides
    central: bool

    def residual(self, now: Iterate, products: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of slack times weight, and the largest thing that is not as it should be, `(B,)`."""
        gap = apart = self.sides.mean(products)
        if self.central:
            apart = _NEAR * self.sides.only(products / now.floor - 1, 0.0).abs().amax(1)
        left = torch.maximum(now.miss.abs().amax(1), apart)
        return gap, left if now.off is None else torch.maximum(left, now.off.abs().amax(1))

    def step(self, reduction: Reduction, now: Iterate, products: Tensor, gap: Tensor) -> Iterate:
        """Predictor and corrector."""
        factored = self.factor(reduction, now)
        _, _, slack, weight = self.direction(factored, now, now.floor - products if self.central else -products)
        fall, met = self._fall(now, slack, weight)
        length = (1 / fall.clamp_min(1)).unsqueeze(1)
        ahead = self.sides.mean((now.slack + length * slack) * (now.weight + length * weight))
        aim = ((ahead / gap) ** 3 * gap).unsqueeze(1)
        aim = torch.maximum(aim, now.floor) if self.central else aim
        aim = self.sides.only(aim - products - slack * weight, 0.0)
        y, _, slack, weight = self.direction(factored, now, aim)
        length = (_TO_THE_WALL / self._fall(now, slack, weight)[0].clamp_min(_TO_THE_WALL)).unsqueeze(1)
        pull, off = now.pull, now.off
        if self.sides.fixed is not None:
            assert pull is not None
            assert off is not None
            pull, off = pull + length * torch.where(self.sides.fixed, y, 0.0), off * (1 - length)
        slack, weight = now.slack + length * slack, now.weight + length * weight
        return Iterate(slack, weight, now.miss * (1 - length), met, now.floor, pull, off)

    def factor(self, reduction: Reduction, now: Iterate) -> tuple[Factored, Tensor, Tensor]:
        """`K + D^{-1}`, factored; multipliers over slacks; `D^{-1}`."""
        ratio = now.weight / now.slack
        inverse = 1 / self.sides.summed(ratio)
        if self.sides.has is not None:
            inverse = inverse.clamp(max=_FREE)
        if self.sides.fixed is not None:
            inverse = torch.where(self.sides.fixed, _HAIR, inverse)
        return reduction.factor(inverse), ratio, inverse

    def direction(
        self, factored: tuple[Factored, Tensor, Tensor], now: Iterate, aim: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The step of `y`, what `R z` falls by, and the steps of slacks and weights, for a change of their products."""
        system, ratio, inverse = factored
        wanted = aim / now.slack - ratio * now.miss
        right = inverse * self.sides.joined(wanted)
        if self.sides.fixed is not None:
            right = torch.where(self.sides.fixed, now.off, right)  # type: ignore[arg-type]
        y = system.solve(right)
        drop = right - inverse * y  # K y
        turn = self.sides.spread(drop)
        return y, drop, self.sides.only(turn + now.miss, 0.0), wanted - ratio * turn

    def _fall(self, now: Iterate, slack: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The largest rate at which a slack or a weight falls, `(B,)`, and which slacks fall faster than their weights.

        In a predictor step both rates add up to one, and tend to one and zero: whatever the scales, they tell which of
        the two vanishes (A. S. El-Bakry, R. A. Tapia, Y. Zhang, SIAM Review 36(1), 1994).
        """
        of_slack = slack / now.slack
        of_weight = weight / (
            now.weight if self.sides.has is None else now.weight.clamp_min(torch.finfo(weight.dtype).tiny)
        )
        return -torch.minimum(of_slack.amin(1), of_weight.amin(1)), of_slack < of_weight


def _multipliers(now: Iterate, sides: Sides) -> Tensor:
    """Of the rows, `(B, m)`."""
    y = sides.joined(now.weight)
    return y if now.pull is None else y + now.pull


def _side(now: Iterate, sides: Sides) -> Tensor:
    """The bound that every row seems to meet, int8 `(B, m)`."""
    side = sides.joined((now.met if sides.has is None else now.met & sides.has).to(torch.int8))
    return side if sides.fixed is None else torch.where(sides.fixed, 1, side)


def _lifted(values: Tensor) -> Tensor:
    """Positive values near the given ones."""
    low = values.amin(1, keepdim=True)
    return (values + torch.where(low < 0, 1 - low, 0.0)).clamp_min(1e-2)
