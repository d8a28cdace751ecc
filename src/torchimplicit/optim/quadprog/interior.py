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
from torchimplicit.optim.quadprog.iterate import Bounds, Equations, Iterate, Unknowns
from torchimplicit.optim.quadprog.program import largest
from torchimplicit.optim.quadprog.reduction import Dual, Slim

System = Dual | Slim | Augmented

_APART = 1e12  # of unknowns over multipliers
_ZERO = 1e-12  # of the unit: no row reaches less, a solution of zero would be approached for ever
_FREE = 1e30  # D^{-1} of a row without bounds
_REGULARISATION = 1e-9  # D^{-1} of an equation, where no system adds its own
_TO_THE_WALL = 0.995
_CLOSE = 1e3  # a slack of as many times its multiplier may be zero as well as this
_NEAR = 1e-7  # weighs how far products are from the floor, as a part of it, against primal
_LAST = 1e-20  # of the sizes of rows and slopes: the mean product of slacks and multipliers
_WORSE = 1e4  # than the best: digits are being lost
_PATIENCE = 15  # steps without getting nearer by a third


@dataclass
class Interior:
    """What the method found, for every program.

    Attributes:
        y: multipliers, `(B, m)`.
        weight: those of the upper bounds, followed by those of the lower ones if there are any.
        active: the bound that every row seems to meet: 1 upper, -1 lower, 0 none, `(B, m)`.
        steps: `(B,)`.
        z: unknowns, `(B, n)`; none of them, `(B, 0)`, where the system has eliminated them.
        near: as `active`, with bounds that are met whether or not they hold anything; not known without `z`.
        done: whether the tolerance was reached, `(B,)`.
    """

    y: Tensor
    weight: Tensor
    active: Tensor
    steps: Tensor
    z: Tensor
    near: Tensor
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
    found = _nothing(w, now)
    for step in range(max_steps + 1):
        products = now.slack * now.weight
        gap, left = method.residual(now, products)
        nearer = left < 0.7 * best
        best, since = torch.where(nearer, left, best), torch.where(nearer, step, since)
        lost = (step - since > _PATIENCE) | (left > _WORSE * best)
        stop = ~(left > tol) | lost | method.ended(now, gap)  # also where NaN appeared
        stop = stop if step < max_steps else torch.ones_like(stop)
        stopped = int(stop.sum())
        if stopped:
            at = torch.nonzero(stop).flatten()
            _put(found, index[at], now.take(at), method.bounds.take(at), step)
            found.done[index[at]] = left[at] <= tol
            if stopped == len(index):
                break
            going = torch.nonzero(~stop).flatten()
            index, now, system = index[going], now.take(going), system.take(going)
            method.bounds, products, gap = method.bounds.take(going), products[going], gap[going]
            best, since = best[going], since[going]
        now = method.step(system, now, products, gap)
    return found


def _nothing(w: Tensor, now: Iterate) -> Interior:
    steps = torch.zeros_like(w[:, 0], dtype=torch.int64)
    active = w.new_zeros(w.shape, dtype=torch.int8)
    z, near = (w[:, :0], active) if now.unknowns is None else (torch.zeros_like(now.unknowns.z), active.clone())
    return Interior(torch.zeros_like(w), torch.zeros_like(now.weight), active, steps, z, near, steps > 0)


def _put(found: Interior, rows: Tensor, now: Iterate, bounds: Bounds, step: int) -> None:
    y, equations = bounds.joined(now.weight), now.equations
    found.y[rows], found.weight[rows] = y if equations is None else y + equations.nu, now.weight
    found.steps[rows], sign = step, y.sign()
    met = bounds.summed((now.met if bounds.has is None else now.met & bounds.has).to(torch.int8)) > 0
    active = torch.where(met, sign, 0).to(torch.int8)
    found.active[rows] = active if equations is None else torch.where(equations.rows, 1, active)
    if now.unknowns is not None:
        found.z[rows], _, reach, force = now.unknowns
        close = bounds.only(now.slack / reach, torch.inf) < _CLOSE * now.weight / force
        near = torch.where(bounds.summed(close.to(torch.int8)) > 0, sign, 0).to(torch.int8)
        found.near[rows] = near if equations is None else torch.where(equations.rows, 1, near)


def _begin(system: System, w: Tensor, lower: Tensor, upper: Tensor, floor: float | Tensor) -> tuple[_Method, Iterate]:
    bounds, fixed = Bounds.of(lower, upper)
    floor = torch.as_tensor(floor, dtype=w.dtype, device=w.device).expand(len(w), 1)
    method = _Method(bounds, bool((floor > 0).any()))
    if isinstance(system, Dual | Slim):
        equations = None if fixed is None else Equations.of(fixed, upper, torch.zeros_like(w), w)
        return method, method.affine(system, w, floor, equations)
    z, y = system.start()
    reached, _, size = system.at(z, y)
    room = bounds.only(bounds.bound - bounds.spread(reached), 0.0)
    short = -room.amin(1, keepdim=True) if room.shape[1] else torch.zeros_like(size)
    # In units in which all is about one, slacks from one on: from smaller ones the method creeps along the bounds.
    unit = torch.stack((short, largest(reached).unsqueeze(1))).amax(0).clamp_min(1.0)
    slack = bounds.only(torch.maximum(room, unit), 1.0)
    force = torch.maximum(largest(y).unsqueeze(1), size)
    force = torch.where(force > 0, force, 1.0)
    weight = bounds.only(torch.maximum(bounds.spread(y), force * unit / slack), 0.0)
    equations = None if fixed is None else Equations.of(fixed, upper, y, reached)
    now = Iterate(slack, weight, room, weight > slack, floor, equations)
    method.measure(system, now, z)
    return method, now


@dataclass
class _Method:
    """A step of the method.

    Attributes:
        bounds: which bounds there are.
        central: whether the products tend to a floor that is not zero.
    """

    bounds: Bounds
    central: bool

    def affine(self, system: Dual | Slim, w: Tensor, floor: Tensor, equations: Equations | None) -> Iterate:
        """One full affine step from slacks and multipliers of one, which are then lifted off the walls."""
        bounds = self.bounds
        slack = torch.ones_like(bounds.bound)
        has = slack > 0 if bounds.has is None else bounds.has
        primal, weight = bounds.primal(w, slack), has.to(w.dtype)
        now = Iterate(slack, weight, bounds.only(primal, 0.0), has, floor, equations)
        _, _, more_slack, more_weight = self.direction(self.factor(system, now), now, -weight)
        now.slack = bounds.only(_lifted(bounds.only(slack + more_slack, 1.0)), 1.0)
        now.weight = bounds.only(_lifted(bounds.only(weight + more_weight, 0.0)), 0.0)
        now.met = now.weight > now.slack
        w = w - system.times(bounds.joined(now.weight))
        now.primal, now.equations = bounds.primal(w, now.slack), None if equations is None else equations.at(w)
        return now

    def residual(self, now: Iterate, products: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of slack times weight, and the largest thing that is not as it should be, `(B,)`."""
        gap = apart = self.bounds.mean(products)
        primal, missed = now.primal, None if now.equations is None else now.equations.missed
        if now.unknowns is not None:
            _, slope, reach, force = now.unknowns
            primal, missed = primal / (reach + self.bounds.bound.abs()), None if missed is None else missed / reach
            apart = torch.maximum((gap.unsqueeze(1) / (reach * force)).squeeze(1), largest(slope / force))
        if self.central:
            apart = _NEAR * self.bounds.only(products / now.floor - 1, 0.0).abs().amax(1)
        left = torch.maximum(largest(primal), apart)
        return gap, left if missed is None else torch.maximum(left, largest(missed))

    def ended(self, now: Iterate, gap: Tensor) -> Tensor:
        """Where there is nothing more to learn: further steps only lose digits, `(B,)`."""
        if now.unknowns is None or self.central:
            return torch.zeros_like(gap, dtype=torch.bool)
        return gap < _LAST * (now.unknowns.reach * now.unknowns.force).squeeze(1)

    def step(self, system: System, now: Iterate, products: Tensor, gap: Tensor) -> Iterate:
        """Predictor and corrector."""
        factored = self.factor(system, now)
        _, _, slack, weight = self.direction(factored, now, now.floor - products if self.central else -products)
        of_slack, of_weight = self._rates(now, slack, weight)
        # In a predictor step both rates add up to one, and tend to one and zero: whatever the scales, they tell which
        # of the two vanishes (A. S. El-Bakry, R. A. Tapia, Y. Zhang, SIAM Review 36(1), 1994).
        met = of_slack < of_weight
        length = _length(of_slack, of_weight, 1.0)
        ahead = self.bounds.mean((now.slack + length * slack) * (now.weight + length * weight))
        aim = ((ahead / gap.clamp_min(torch.finfo(gap.dtype).tiny)) ** 3 * gap).unsqueeze(1)
        aim = torch.maximum(aim, now.floor) if self.central else aim
        aim = self.bounds.only(aim - products - slack * weight, 0.0)
        z, y, slack, weight = self.direction(factored, now, aim)
        length = _length(*self._rates(now, slack, weight), _TO_THE_WALL)
        equations = None if now.equations is None else now.equations.moved(y, length)
        slack, weight = now.slack + length * slack, now.weight + length * weight
        then = Iterate(slack, weight, now.primal * (1 - length), met, now.floor, equations)
        if isinstance(system, Augmented) and now.unknowns is not None:
            self.measure(system, then, now.unknowns.z + length * z)
        return then

    def measure(self, system: Augmented, now: Iterate, z: Tensor) -> None:
        """Evaluates anew what is missed, at unknowns `(B, n)`."""
        y, equations = self.bounds.joined(now.weight), now.equations
        w, slope, size = system.at(z, y if equations is None else y + equations.nu)
        now.primal, now.equations = self.bounds.primal(w, now.slack), None if equations is None else equations.at(w)
        met = torch.where(now.slack < now.weight, self.bounds.bound, 0.0)
        reach = torch.maximum(largest(w), largest(met)).unsqueeze(1)
        now.unknowns = Unknowns(z, slope, reach.clamp_min(_ZERO), torch.where(size > 0, size, 1.0))

    def factor(self, system: System, now: Iterate) -> tuple[Any, Tensor, Tensor]:
        """The matrix, factored; multipliers over slacks; `D^{-1}`."""
        ratio = now.weight / now.slack
        inverse = 1 / self.bounds.summed(ratio)
        if self.bounds.has is not None:
            inverse = inverse.clamp(max=_FREE)
        unknowns, equations = now.unknowns, now.equations
        unit = 1.0 if unknowns is None else (unknowns.reach / unknowns.force).clamp(1 / _APART, _APART)
        if equations is not None:
            inverse = torch.where(equations.rows, _REGULARISATION if unknowns is None else 0.0, inverse)
        return system.factor(inverse, unit), ratio, inverse

    def direction(
        self, factored: tuple[Any, Tensor, Tensor], now: Iterate, aim: Tensor
    ) -> tuple[Any, Tensor, Tensor, Tensor]:
        """The steps of unknowns, multipliers, slacks and weights, for a change of the products of the last two.

        That of unknowns is None where they are eliminated.
        """
        system, ratio, inverse = factored
        wanted = aim / now.slack - ratio * now.primal
        right = inverse * self.bounds.joined(wanted)
        if now.equations is not None:
            right = torch.where(now.equations.rows, now.equations.missed, right)
        z, y = (None, system.solve(right)) if now.unknowns is None else system.solve(right, now.unknowns.slope)
        fall = self.bounds.spread(right - inverse * y)  # what R z falls by
        return z, y, self.bounds.only(fall + now.primal, 0.0), wanted - ratio * fall

    def _rates(self, now: Iterate, slack: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The rates at which slacks and weights grow in a step."""
        least = torch.finfo(weight.dtype).tiny
        return slack / now.slack, weight / (now.weight if self.bounds.has is None else now.weight.clamp_min(least))


def _length(of_slack: Tensor, of_weight: Tensor, wall: float) -> Tensor:
    """How much of a step is taken, at most all of it, to get no further than some of the way to the wall, `(B, 1)`."""
    return wall / torch.minimum(of_slack, of_weight).amin(1, keepdim=True).neg_().clamp_min_(wall)


def _lifted(values: Tensor) -> Tensor:
    """Positive values near the given ones."""
    low = values.amin(1, keepdim=True)
    return (values + torch.where(low < 0, 1 - low, 0.0)).clamp_min(1e-2)
