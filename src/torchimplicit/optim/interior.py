r"""Mehrotra's predictor-corrector method on the multipliers alone, every program at its own pace.

Solution and equations are eliminated once: with $w = R z$ at the minimum for given multipliers $y$ of the
inequalities, $w = w_0 - K y$. A step then solves $(K + D^{-1})\, \Delta y = \rho$, with $D$ the multipliers over
the slacks, and never touches the unknowns (S. Mehrotra, SIAM J. Optim. 2(4), 1992; the reduction is classical for
monotone complementarity problems). A row between two bounds is one row of $K$, with a slack to each.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

_FREE = 1e30  # D^{-1} of a row without bounds
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
class Iterate:
    """Where the method stands, for the programs still on their way.

    Attributes:
        w: `R z` of the inequalities, `(B, m)`.
        y: their multipliers, upper minus lower, `(B, m)`.
        slack: to every bound, `(B, k, m)`; 1 where there is none.
        weight: the multiplier of every bound, `(B, k, m)`; 0 where there is none.
        bound: `(B, k, m)`; 0 where there is none.
        has: where there is a bound, `(B, k, m)`.
        fixed: rows whose two bounds are equal, `(B, m)`: those are equations.
        target: their value, `(B, m)`.
        floor: what the products of slack and multiplier tend to, `(B, 1, 1)`.
        met: which bounds the last step was heading for, `(B, k, m)`.
    """

    w: Tensor
    y: Tensor
    slack: Tensor
    weight: Tensor
    bound: Tensor
    has: Tensor
    fixed: Tensor
    target: Tensor
    floor: Tensor
    met: Tensor

    def take(self, index: Tensor) -> Iterate:
        """That of some of the programs."""
        return Iterate(*(getattr(self, part.name)[index] for part in fields(self)))


@dataclass
class Interior:
    """What the method found, for every program.

    Attributes:
        y: multipliers, `(B, m)`.
        weight: those of the upper and, where there are any, of the lower bounds, `(B, k, m)`.
        side: the bound that every row seems to meet: 1 upper, -1 lower, 0 none, `(B, m)`.
        steps: `(B,)`.
        residual: infeasibility and gap, in the method's scale, `(B,)`.
    """

    y: Tensor
    weight: Tensor
    side: Tensor
    steps: Tensor
    residual: Tensor


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
    now = _begin(w / scale, lower / scale, upper / scale)
    sign = w.new_tensor([[[1.0], [-1.0]]])[:, : now.bound.shape[1]]
    now.floor = floor / scale.square().unsqueeze(2)
    method = _Method(sign, bool(now.has.all()), bool(now.fixed.any()), floor > 0)
    now = method.start(reduction, now)
    batch = len(w)
    index = torch.arange(batch, device=w.device)
    y, side = torch.zeros_like(w), torch.zeros_like(w, dtype=torch.int8)
    weight = torch.zeros_like(now.weight)
    steps = torch.full((batch,), max_steps, device=w.device)
    residual = torch.full_like(w[:, 0], torch.inf)

    def record(which: Tensor, step: int, now: Iterate, left: Tensor) -> None:
        rows = index[which]
        y[rows], weight[rows], side[rows] = now.y[which], now.weight[which], method.side(now)[which]
        steps[rows], residual[rows] = step, left[which]

    for step in range(max_steps + 1):
        miss, gap, left = method.residual(now)
        stop = ~(left > tol) | ~left.isfinite()  # also where NaN appeared
        stopped = int(stop.sum()) if step < max_steps else len(index)
        if stopped == len(index):
            record(torch.ones_like(stop), step, now, left)
            break
        if stopped:
            record(stop, step, now, left)
            going = torch.nonzero(~stop).flatten()
            index, now, reduction = index[going], now.take(going), reduction.take(going)
            miss, gap = miss[going], gap[going]
        now = method.step(reduction, now, miss, gap)
    return Interior(y * scale, weight * scale.unsqueeze(2), side, steps, residual)


def _begin(w: Tensor, lower: Tensor, upper: Tensor) -> Iterate:
    """Slacks and multipliers of one, those of missing bounds one and zero."""
    fixed = lower == upper
    two_sided = bool(lower.isfinite().any())
    bound = torch.stack((upper, lower), 1) if two_sided else upper.unsqueeze(1)
    has = bound.isfinite() & ~fixed.unsqueeze(1)
    bound = torch.where(has, bound, 0.0)
    slack = torch.ones_like(bound)
    target = torch.where(fixed, upper, 0.0)
    return Iterate(w, torch.zeros_like(w), slack, has.to(w.dtype), bound, has, fixed, target, slack.new_zeros(()), has)


@dataclass(frozen=True)
class _Method:
    """A step of the method; flags leave out what no program of the batch needs."""

    sign: Tensor
    all_bounded: bool
    some_fixed: bool
    central: bool

    def residual(self, now: Iterate) -> tuple[Tensor, Tensor, Tensor]:
        """How far slacks are from what they stand for `(B, k, m)`, the mean gap `(B,)`, the larger of both `(B,)`."""
        miss = self.sign * (now.bound - now.w.unsqueeze(1)) - now.slack
        if not self.all_bounded:
            miss = torch.where(now.has, miss, 0.0)
            gap = (now.slack * now.weight).sum((1, 2)) / now.has.sum((1, 2)).clamp_min(1)
        else:
            gap = (now.slack * now.weight).mean((1, 2))
        apart = gap
        if self.central:
            apart = _NEAR * torch.where(now.has, now.slack * now.weight / now.floor - 1, 0.0).abs().amax((1, 2))
        left = torch.maximum(miss.abs().amax((1, 2)), apart)
        if self.some_fixed:
            left = torch.maximum(left, torch.where(now.fixed, now.w - now.target, 0.0).abs().amax(1))
        return miss, gap, left

    def start(self, reduction: Reduction, now: Iterate) -> Iterate:
        """One full affine step, then slacks and multipliers are lifted off the walls."""
        miss, _, _ = self.residual(now)
        _, _, slack, weight = self._direction(self._factor(reduction, now), now, miss, -now.weight)
        slack, weight = now.slack + slack, now.weight + weight
        if not self.all_bounded:
            slack, weight = torch.where(now.has, slack, 1.0), torch.where(now.has, weight, 0.0)
        slack, weight = _lifted(slack), _lifted(weight)
        if not self.all_bounded:
            slack, weight = torch.where(now.has, slack, 1.0), torch.where(now.has, weight, 0.0)
        y = (self.sign * weight).sum(1)
        w = now.w - reduction.times(y)
        return Iterate(w, y, slack, weight, now.bound, now.has, now.fixed, now.target, now.floor, weight > slack)

    def step(self, reduction: Reduction, now: Iterate, miss: Tensor, gap: Tensor) -> Iterate:
        """Predictor and corrector."""
        factored = self._factor(reduction, now)
        away = now.slack * now.weight
        ahead = now.floor - away if self.central else -away
        _, _, slack, weight = self._direction(factored, now, miss, ahead)
        length, met = _length(now, slack, weight)
        length = length.clamp(max=1.0)
        ahead = (now.slack + length * slack) * (now.weight + length * weight)
        ahead = ahead.mean((1, 2)) if self.all_bounded else ahead.sum((1, 2)) / now.has.sum((1, 2)).clamp_min(1)
        aim = ((ahead / gap) ** 3 * gap)[:, None, None]
        if self.central:
            aim = torch.maximum(aim, now.floor)
        if not self.all_bounded:
            aim = aim * now.has
        y, w, slack, weight = self._direction(factored, now, miss, aim - away - slack * weight)
        length = (_TO_THE_WALL * _length(now, slack, weight)[0]).clamp(max=1.0)
        flat = length.squeeze(2)
        return Iterate(
            now.w + flat * w, now.y + flat * y, now.slack + length * slack, now.weight + length * weight,
            now.bound, now.has, now.fixed, now.target, now.floor, met,
        )  # fmt: skip

    def side(self, now: Iterate) -> Tensor:
        """The bound that every row seems to meet, int8 `(B, m)`."""
        side = (self.sign * (now.met & now.has)).sum(1)
        return torch.where(now.fixed, 1.0, side).to(torch.int8)

    def _factor(self, reduction: Reduction, now: Iterate) -> tuple[Factored, Tensor, Tensor]:
        ratio = now.weight / now.slack
        inverse = 1 / ratio.sum(1)
        if not self.all_bounded:
            inverse = inverse.clamp(max=_FREE)
        if self.some_fixed:
            inverse = torch.where(now.fixed, 1e-9, inverse)
        return reduction.factor(inverse), ratio, inverse

    def _direction(
        self, factored: tuple[Factored, Tensor, Tensor], now: Iterate, miss: Tensor, aim: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The step of `y`, `w`, slacks and weights towards products of slack and weight that change by `aim`."""
        system, ratio, inverse = factored
        wanted = aim / now.slack - ratio * miss
        right = inverse * (self.sign * wanted).sum(1)
        if self.some_fixed:
            right = torch.where(now.fixed, now.w - now.target, right)
        y = system.solve(right)
        drop = right - inverse * y  # K y
        turn = self.sign * drop.unsqueeze(1)
        slack = turn + miss
        if not self.all_bounded:
            slack = torch.where(now.has, slack, 0.0)
        return y, -drop, slack, wanted - ratio * turn


def _lifted(values: Tensor) -> Tensor:
    """Positive values near the given ones."""
    low = values.amin((1, 2), keepdim=True)
    values = values + torch.where(low < 0, 1 - low, 0.0)
    return values.clamp_min(1e-2)


def _length(now: Iterate, slack: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """How far a step goes until a slack or a weight is zero, at most 1e9, `(B, 1, 1)`; and which slacks go first.

    The rates at which a slack and its weight fall add up to one in a predictor step, and tend to one and zero: whatever
    the scales, they tell which of the two vanishes (A. S. El-Bakry, R. A. Tapia, Y. Zhang, SIAM Review 36(1), 1994).
    """
    of_slack, of_weight = -slack / now.slack, -weight / now.weight.clamp_min(1e-300)
    rate = torch.maximum(of_slack.amax((1, 2)), of_weight.amax((1, 2)))
    return (1 / rate.clamp_min(1e-9))[:, None, None], of_slack > of_weight
