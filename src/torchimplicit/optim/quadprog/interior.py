r"""Mehrotra's predictor-corrector method (SIAM J. Optim. 2(4), 1992), every program at its own pace.

With $D$ the multipliers over the slacks, $f$ the slope of the Lagrangian and $\rho$ what rows miss, a step solves

$$ \begin{pmatrix} Q & R^\top \\ R & -D^{-1} \end{pmatrix}
   \begin{pmatrix} \Delta z \\ \Delta y \end{pmatrix} = -\begin{pmatrix} f \\ \rho \end{pmatrix} $$

by a system: `Dual` eliminates unknowns and equations once, and the slope stays zero; `Augmented` carries the unknowns
along and needs no definite $Q$. A row between two bounds is one row, with a slack to each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.augmented import Augmented
from torchimplicit.optim.quadprog.iterate import Iterate, Sides
from torchimplicit.optim.quadprog.program import largest
from torchimplicit.optim.quadprog.reduction import Dual, Slim

System = Dual | Slim | Augmented

_APART = 1e12  # of unknowns over multipliers
_ZERO = 1e-12  # of the unit: no row reaches less, a solution of zero would be approached for ever
_FREE = 1e30  # D^{-1} of a row without bounds
_HAIR = 1e-9  # D^{-1} of an equation, where no system adds its own
_TO_THE_WALL = 0.995
_CLOSE = 1e3  # a slack of as many times its multiplier may be zero as well as this
_NEAR = 1e-7  # weighs how far products are from the floor, as a part of it, against infeasibility
_LAST = 1e-20  # of the sizes of rows and slopes: the mean product of slacks and multipliers
_WORSE = 1e4  # than the best: digits are being lost
_PATIENCE = 15  # steps without getting nearer by a third


@dataclass
class Interior:
    """What the method found, for every program.

    Attributes:
        y: multipliers, `(B, m)`.
        weight: those of the upper bounds, followed by those of the lower ones if there are any.
        side: the bound that every row seems to meet: 1 upper, -1 lower, 0 none, `(B, m)`.
        steps: `(B,)`.
        z: unknowns, `(B, n)`; None where the system has eliminated them.
        near: as `side`, with bounds that are met whether or not they hold anything; None without `z`.
        done: whether the tolerance was reached, `(B,)`.
    """

    y: Tensor
    weight: Tensor
    side: Tensor
    steps: Tensor
    z: Tensor | None
    near: Tensor | None
    done: Tensor


def interior(
    system: System, w: Tensor, lower: Tensor, upper: Tensor, tol: float, max_steps: int, floor: float | Tensor = 0.0
) -> Interior:
    """Runs the method to a residual of `tol` in its own scale, or to where it comes no nearer.

    Args:
        system: the Karush-Kuhn-Tucker matrices, with the unknowns or without.
        w: `R z` at `y = 0`, `(B, m)`, where the system eliminates the unknowns.
        lower: `(B, m)`, may be infinite.
        upper: `(B, m)`, may be infinite.
        tol: when to stop.
        max_steps: when to give up.
        floor: what every slack times its multiplier comes to: zero at the solution, more on the central path.
    """
    method, now = _begin(system, w, lower, upper, floor)
    index = torch.arange(len(w), device=w.device)
    best, since = torch.full_like(w[:, 0], torch.inf), torch.zeros_like(index)
    found: Interior | None = None
    for step in range(max_steps + 1):
        products = now.slack * now.weight
        gap, left = method.residual(now, products)
        nearer = left < 0.7 * best
        best, since = torch.where(nearer, left, best), torch.where(nearer, step, since)
        lost = (step - since > _PATIENCE) | (left > _WORSE * best)
        stop = ~(left > tol) | lost | method.ended(now, gap)  # also where NaN appeared
        stop = stop if step < max_steps else torch.ones_like(stop)
        found = _nothing(w, now) if found is None else found
        stopped = int(stop.sum())
        if stopped:
            at = torch.nonzero(stop).flatten()
            _put(found, index[at], now.take(at), method.sides.take(at), step)
            found.done[index[at]] = left[at] <= tol
            if stopped == len(index):
                break
            going = torch.nonzero(~stop).flatten()
            index, now, system = index[going], now.take(going), system.take(going)
            method.sides, products, gap = method.sides.take(going), products[going], gap[going]
            best, since = best[going], since[going]
        now = method.step(system, now, products, gap)
    assert found is not None
    return found


def _nothing(w: Tensor, now: Iterate) -> Interior:
    steps = torch.zeros_like(w[:, 0], dtype=torch.int64)
    side = w.new_zeros(w.shape, dtype=torch.int8)
    z, near = (None, None) if now.z is None else (torch.zeros_like(now.z), side.clone())
    return Interior(torch.zeros_like(w), torch.zeros_like(now.weight), side, steps, z, near, steps > 0)


def _put(found: Interior, rows: Tensor, now: Iterate, sides: Sides, step: int) -> None:
    y = sides.joined(now.weight)
    found.y[rows], found.weight[rows], found.steps[rows] = y if now.pull is None else y + now.pull, now.weight, step
    met = sides.summed((now.met if sides.has is None else now.met & sides.has).to(torch.int8)) > 0
    side = torch.where(met, y.sign(), 0).to(torch.int8)
    found.side[rows] = side if sides.fixed is None else torch.where(sides.fixed, 1, side)
    if found.z is not None and found.near is not None and now.z is not None:
        found.z[rows] = now.z
        reach, force = now.sizes  # type: ignore[misc]
        near = sides.summed((sides.only(now.slack / reach, torch.inf) < _CLOSE * now.weight / force).to(torch.int8)) > 0
        near = torch.where(near, y.sign(), 0).to(torch.int8)
        found.near[rows] = near if sides.fixed is None else torch.where(sides.fixed, 1, near)


def _begin(system: System, w: Tensor, lower: Tensor, upper: Tensor, floor: float | Tensor) -> tuple[_Method, Iterate]:
    sides = Sides.of(lower, upper)
    floor = torch.as_tensor(floor, dtype=w.dtype, device=w.device).expand(len(w), 1)
    method = _Method(sides, bool((floor > 0).any()))
    if isinstance(system, Dual | Slim):
        return method, method.affine(system, w, floor)
    z, y = system.start()
    reached, _, size = system.at(z, y)
    room = sides.only(sides.bound - sides.spread(reached), 0.0)
    short = -room.amin(1, keepdim=True) if room.shape[1] else torch.zeros_like(size)
    # In units in which all is about one, slacks from one on: from smaller ones the method creeps along the bounds.
    unit = torch.stack((short, largest(reached).unsqueeze(1))).amax(0).clamp_min(1.0)
    slack = sides.only(torch.maximum(room, unit), 1.0)
    pull = torch.maximum(largest(y).unsqueeze(1), size)
    pull = torch.where(pull > 0, pull, 1.0)
    weight = sides.only(torch.maximum(sides.spread(y), pull * unit / slack), 0.0)
    now = Iterate(slack, weight, room, weight > slack, floor, None, None, z)
    now.pull = None if sides.fixed is None else torch.where(sides.fixed, y, 0.0)
    method.measure(system, now)
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

    def affine(self, system: Dual | Slim, w: Tensor, floor: Tensor) -> Iterate:
        """One full affine step from slacks and multipliers of one, which are then lifted off the walls."""
        sides = self.sides
        slack = torch.ones_like(sides.bound)
        has = slack > 0 if sides.has is None else sides.has
        miss, off = sides.missed(w, slack)
        weight = has.to(w.dtype)
        now = Iterate(slack, weight, sides.only(miss, 0.0), has, floor, None, off)
        now.pull = None if off is None else torch.zeros_like(w)
        _, _, more_slack, more_weight = self.direction(self.factor(system, now), now, -weight)
        now.slack = sides.only(_lifted(sides.only(slack + more_slack, 1.0)), 1.0)
        now.weight = sides.only(_lifted(sides.only(weight + more_weight, 0.0)), 0.0)
        now.met = now.weight > now.slack
        now.miss, now.off = sides.missed(w - system.times(sides.joined(now.weight)), now.slack)
        return now

    def residual(self, now: Iterate, products: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of slack times weight, and the largest thing that is not as it should be, `(B,)`."""
        gap = apart = self.sides.mean(products)
        miss, off = now.miss, now.off
        if now.sizes is not None:
            reach, force = now.sizes
            miss, off = miss / (reach + self.sides.bound.abs()), None if off is None else off / reach
            apart = torch.maximum((gap.unsqueeze(1) / (reach * force)).squeeze(1), largest(now.slope / force))  # type: ignore[operator]
        if self.central:
            apart = _NEAR * self.sides.only(products / now.floor - 1, 0.0).abs().amax(1)
        left = torch.maximum(largest(miss), apart)
        return gap, left if off is None else torch.maximum(left, largest(off))

    def ended(self, now: Iterate, gap: Tensor) -> Tensor:
        """Where there is nothing more to learn: further steps only lose digits, `(B,)`."""
        if now.sizes is None or self.central:
            return torch.zeros_like(gap, dtype=torch.bool)
        return gap < _LAST * (now.sizes[0] * now.sizes[1]).squeeze(1)

    def step(self, system: System, now: Iterate, products: Tensor, gap: Tensor) -> Iterate:
        """Predictor and corrector."""
        factored = self.factor(system, now)
        _, _, slack, weight = self.direction(factored, now, now.floor - products if self.central else -products)
        of_slack, of_weight = self._rates(now, slack, weight)
        # In a predictor step both rates add up to one, and tend to one and zero: whatever the scales, they tell which
        # of the two vanishes (A. S. El-Bakry, R. A. Tapia, Y. Zhang, SIAM Review 36(1), 1994).
        met = of_slack < of_weight
        length = _length(of_slack, of_weight, 1.0)
        ahead = self.sides.mean((now.slack + length * slack) * (now.weight + length * weight))
        aim = ((ahead / gap.clamp_min(torch.finfo(gap.dtype).tiny)) ** 3 * gap).unsqueeze(1)
        aim = torch.maximum(aim, now.floor) if self.central else aim
        aim = self.sides.only(aim - products - slack * weight, 0.0)
        z, y, slack, weight = self.direction(factored, now, aim)
        length = _length(*self._rates(now, slack, weight), _TO_THE_WALL)
        off = None if now.off is None else now.off * (1 - length)
        pull = now.pull if self.sides.fixed is None else now.pull + length * torch.where(self.sides.fixed, y, 0.0)  # type: ignore[operator]
        slack, weight = now.slack + length * slack, now.weight + length * weight
        then = Iterate(slack, weight, now.miss * (1 - length), met, now.floor, pull, off)
        if z is not None:
            then.z = now.z + length * z  # type: ignore[operator]
            self.measure(system, then)  # type: ignore[arg-type]
        return then

    def measure(self, system: Augmented, now: Iterate) -> None:
        """Evaluates anew what is missed, where the unknowns are known."""
        y = self.sides.joined(now.weight)
        w, now.slope, size = system.at(now.z, y if now.pull is None else y + now.pull)  # type: ignore[arg-type]
        now.miss, now.off = self.sides.missed(w, now.slack)
        met = torch.where(now.slack < now.weight, self.sides.bound, 0.0)
        reach = torch.maximum(largest(w), largest(met)).unsqueeze(1)
        now.sizes = reach.clamp_min(_ZERO), torch.where(size > 0, size, 1.0)

    def factor(self, system: System, now: Iterate) -> tuple[Any, Tensor, Tensor]:
        """The matrix, factored; multipliers over slacks; `D^{-1}`."""
        ratio = now.weight / now.slack
        inverse = 1 / self.sides.summed(ratio)
        if self.sides.has is not None:
            inverse = inverse.clamp(max=_FREE)
        unit = 1.0 if now.sizes is None else (now.sizes[0] / now.sizes[1]).clamp(1 / _APART, _APART)
        if self.sides.fixed is not None:
            inverse = torch.where(self.sides.fixed, _HAIR if now.z is None else 0.0, inverse)
        return system.factor(inverse, unit), ratio, inverse

    def direction(
        self, factored: tuple[Any, Tensor, Tensor], now: Iterate, aim: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """The steps of unknowns, multipliers, slacks and weights, for a change of the products of the last two."""
        system, ratio, inverse = factored
        wanted = aim / now.slack - ratio * now.miss
        right = inverse * self.sides.joined(wanted)
        if self.sides.fixed is not None:
            right = torch.where(self.sides.fixed, now.off, right)  # type: ignore[arg-type]
        z, y = system.solve(right, now.slope)
        turn = self.sides.spread(right - inverse * y)  # what R z falls by
        return z, y, self.sides.only(turn + now.miss, 0.0), wanted - ratio * turn

    def _rates(self, now: Iterate, slack: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The rates at which slacks and weights grow in a step."""
        least = torch.finfo(weight.dtype).tiny
        return slack / now.slack, weight / (now.weight if self.sides.has is None else now.weight.clamp_min(least))


def _length(of_slack: Tensor, of_weight: Tensor, wall: float) -> Tensor:
    """How much of a step is taken, at most all of it, to get no further than some of the way to the wall, `(B, 1)`."""
    return wall / torch.minimum(of_slack, of_weight).amin(1, keepdim=True).neg_().clamp_min_(wall)


def _lifted(values: Tensor) -> Tensor:
    """Positive values near the given ones."""
    low = values.amin(1, keepdim=True)
    return (values + torch.where(low < 0, 1 - low, 0.0)).clamp_min(1e-2)
