r"""The dual simplex method for the last digits: which bound is met where two are nearer than an interior point sees.

Working rows that cannot all be met contradict each other: weights $w$ of them give $R^\top w = 0$ and $w^\top t \ne 0$.
Along these the multipliers change nothing of the slope and improve the dual, until one of them is zero: that row leaves
(C. E. Lemke, Naval Res. Logist. Q. 1(1), 1954; D. Goldfarb, A. Idnani, Math. Program. 27, 1983).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.active_set import Point
from torchimplicit.optim.quadprog.program import Program, largest, times, times_transposed
from torchimplicit.optim.quadprog.singular import Saddle, Singular
from torchimplicit.optim.quadprog.verdict import judge

_ROUNDS = 40
_ROUNDING = 1e-14  # of the terms of a row
_ZERO = 1e-12  # of the largest multiplier
_NOTHING = 1e-6  # of the largest weight


def to_the_last_digit(program: Program, point: Point, build: Callable[[Program, Tensor], Saddle] = Singular.of) -> None:
    """Exchanges points that solve programs to the tolerance for points that solve them, where they are found.

    Args:
        program: in units in which all is about one.
        point: what the guesses of the active bounds gave; optimal ones are left as they are.
        build: factors the systems of working rows, see `SingularSolver`.
    """
    left = torch.nonzero(~point.optimal).flatten()
    if not len(left):
        return
    residual, near = judge(program.take(left), point.z[left], point.y[left])
    for number in torch.nonzero(near).flatten().tolist():
        at, before = left[number : number + 1], residual[number]
        own = program.take(at)
        found = exchanged(own, point.take(at), build)
        if bool(judge(own, found.z, found.y)[0] < before):
            point.put(at, found)


def exchanged(program: Program, point: Point, build: Callable[[Program, Tensor], Saddle] = Singular.of) -> Point:
    """Exchanges working rows one by one until all of them are met, and no other bound is violated.

    Args:
        program: one program, in units in which all is about one.
        point: next to the solution, its multipliers of the right signs.
        build: factors the systems of working rows, see `SingularSolver`.

    Returns:
        The solution, to be judged; the point itself where none was reached.
    """
    locked = (program.lower == program.upper) & (program.length > 0)
    z, y, active = point.z, point.y, torch.where(locked & (point.active == 0), 1, point.active)
    for _ in range(_ROUNDS):
        kkt = build(program, active)
        y = torch.where(active != 0, y, 0.0)
        slope = -program.q - times(program.Q, z) - times_transposed(program.rows, y)
        dz, dy, _ = kkt.solve(slope, program.target(active) - times(program.rows, z))
        z, y = z + dz, y + dy
        missed, beyond = _violations(program, z, active)
        wrong = torch.where(locked, 0.0, active * y)
        if bool((missed != 0).any()):
            weights = _balanced(program, kkt, missed)
            row, step = _first_to_leave(weights, active, wrong, locked)
            if not bool(step.isfinite()):
                return point
            y, active = y + step * weights, _with(active, row, 0)
        elif bool(wrong.amin() < -_ZERO * largest(y)):
            active = _with(active, wrong.argmin(), 0)
        elif bool((beyond != 0).any()):
            row = beyond.abs().argmax()
            active = _with(active, row, beyond[0, row].sign())
        else:
            y, active = torch.where(wrong < 0, 0.0, y), torch.where(wrong < 0, 0, active)
            return replace(point, z=z, y=y, active=active, kkt=kkt)
    return point


def _violations(program: Program, z: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """By how much working rows miss their bounds, and by what part of their terms the others pass one, `(1, r)`."""
    reached, size = times(program.rows, z), times(program.rows.abs(), z.abs())
    missed = torch.where(active != 0, reached - program.target(active), 0.0)
    beyond = torch.where(active == 0, reached - reached.clamp(program.lower, program.upper), 0.0)
    # Unknowns that are zero are so to the rounding of the others.
    rounding = _ROUNDING * size + torch.finfo(z.dtype).eps * program.length * largest(z, keepdim=True)
    missed, beyond = (torch.where(miss.abs() <= rounding, 0.0, miss) for miss in (missed, beyond))
    return missed, beyond / size.clamp_min(torch.finfo(size.dtype).tiny)


def _balanced(program: Program, kkt: Saddle, missed: Tensor) -> Tensor:
    """Weights of the working rows that move no unknown: what least squares leave, and what balances it, `(1, r)`."""
    holder, entry = kkt.holder.flatten(), kkt.entry.flatten()
    held = holder < missed.shape[1]
    weights = missed.index_fill(1, holder[held], 0.0)
    pulled = times_transposed(program.rows, weights) / entry
    weights[0, holder[held]] = -pulled[0, held]
    return weights / largest(weights).clamp_min(torch.finfo(weights.dtype).tiny)


def _first_to_leave(weights: Tensor, active: Tensor, own: Tensor, locked: Tensor) -> tuple[Tensor, Tensor]:
    """The row whose multiplier is the first to be zero, and how far that is; infinitely far if there is none."""
    falls = torch.where(locked, 0.0, -active * weights)
    ratio = torch.where(falls > _NOTHING, own.clamp_min(0) / falls.clamp_min(_NOTHING), torch.inf)
    row = ratio.argmin()
    return row, ratio[0, row]


def _with(active: Tensor, row: Tensor, value: Tensor | int) -> Tensor:
    """The active bounds, one of them changed."""
    changed = active.clone()
    changed[0, row] = value
    return changed
