"""From a guess of the bounds that are met to the solution, exact to rounding: a primal-dual active-set method.

With the right guess one linear solve gives the solution. Where signs are wrong, rows are taken out (a multiplier that
pulls the wrong way) or in (a violated bound) and the solve is done again (M. Hintermueller, K. Ito, K. Kunisch, SIAM
J. Optim. 13(3), 2002), for those programs alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program, largest, times, times_transposed
from torchimplicit.optim.quadprog.saddle import Saddle
from torchimplicit.optim.quadprog.singular import Singular
from torchimplicit.optim.quadprog.sparse.saddle import SparseSaddle, Systems
from torchimplicit.optim.quadprog.verdict import judge

_SIGN = 1e-10  # multipliers and slacks of less than this part of the largest are zero
_RESIDUAL = 1e-11
_NOTHING = 1e-14  # of what a row could reach: what cancels to this is zero
_DEPENDENT = 1e-10


@dataclass
class Point:
    """Solutions of a batch of programs.

    Attributes:
        z: `(B, n)`.
        y: multipliers, `(B, r)`.
        side: the bound that every row meets with a multiplier that is not zero: 1 upper, -1 lower, 0 none, `(B, r)`.
        settled: whether they were found exactly, `(B,)`.
        steps: `(B,)`.
        loose: whether the bounds that are met leave the solution, and the multipliers, undetermined, `(B, 2)`.
        saddle: the factor, if all were found with one.
    """

    z: Tensor
    y: Tensor
    side: Tensor
    settled: Tensor
    steps: Tensor
    loose: Tensor
    saddle: Saddle | Singular | SparseSaddle | Systems | None = None

    @staticmethod
    def nothing(program: Program) -> Point:
        """Zero, for all programs."""
        y = torch.zeros_like(program.lower)
        steps = torch.zeros(program.batch, dtype=torch.int64, device=y.device)
        return Point(torch.zeros_like(program.q), y, y.to(torch.int8), steps == 1, steps, _tight(steps))

    def put(self, index: Tensor, other: Point) -> None:
        """Overwrites some of the programs."""
        for mine, its in zip(self.parts(), other.parts(), strict=True):
            mine[index] = its
        mine, its = self.saddle, other.saddle
        if len(index) == len(self.z):
            self.saddle = its
        elif isinstance(mine, Saddle) and isinstance(its, Saddle):
            mine.put(index, its)
        else:
            self.saddle = None

    def take(self, index: Tensor) -> Point:
        """Some of the programs, without the factor."""
        return Point(*(part[index] for part in self.parts()))  # type: ignore[arg-type]

    def parts(self) -> tuple[Tensor, ...]:
        """All but the factor."""
        return self.z, self.y, self.side, self.settled, self.steps, self.loose


def _tight(steps: Tensor) -> Tensor:
    return torch.zeros(len(steps), 2, dtype=torch.bool, device=steps.device)


def settle(
    program: Program,
    side: Tensor,
    steps: Tensor,
    rounds: int,
    curvature: Tensor | None = None,
    gram: Tensor | None = None,
    center: tuple[Tensor, Tensor] | None = None,
) -> Point:
    """Repairs a guess until every sign is right, or gives up after some rounds.

    Args:
        program: the programs.
        side: the guess, `(B, r)`; see `Point.side`. Equations are always met.
        steps: taken so far, `(B,)`.
        rounds: how many guesses to try.
        curvature: Cholesky factor of `Q`, where it is definite and the rows are independent; None for any programs,
            and for a sparse one alone.
        gram: `R Q^{-1} R'`, if it is known.
        center: solution and multipliers to stay near where those are not unique, `(B, n)` and `(B, r)`.
    """
    locked = (program.lower == program.upper) & (program.length > 0)
    empty = (program.lower == program.upper) & ~locked
    side = torch.where(locked & (side == 0), 1, torch.where(empty, 0, side)).to(torch.int8)
    index, found = torch.arange(program.batch, device=side.device), None
    for _ in range(rounds):
        point, better = _try(program, side, steps, locked, curvature, gram, center)
        if found is None:
            found = point
        else:
            found.put(index, point)
        left = torch.nonzero(~point.settled & (better != side).any(1)).flatten()
        if not len(left):
            break
        side, program, locked = better[left], program.take(left), locked[left]
        curvature, gram = (None if x is None else x[left] for x in (curvature, gram))
        center = None if center is None else (center[0][left], center[1][left])
        index, steps = index[left], steps[left] + 1
    assert found is not None
    return found


def _try(
    program: Program,
    side: Tensor,
    steps: Tensor,
    locked: Tensor,
    curvature: Tensor | None,
    gram: Tensor | None,
    center: tuple[Tensor, Tensor] | None,
) -> tuple[Point, Tensor]:
    """The solution for a guess, and the next guess."""
    if curvature is None:
        saddle = SparseSaddle(program, side[0]) if program.is_sparse else Singular.build(program.Q, program.rows, side)
        z, y = _near(program, side, saddle, center)
    else:
        saddle = Saddle.build(program.Q, program.rows, side, curvature, gram)
        z, y, residual = saddle.solve(-program.q, saddle.gather(program.target(side)))
        y = saddle.scatter(y, side.shape[1])
    reached = times(program.rows, z)
    # A bound that is met without a multiplier counts as not met: the convention for weakly active constraints.
    slack = (side != 0) & ~locked & (side * y * program.length <= _SIGN * largest(y * program.length).unsqueeze(1))
    nothing = _NOTHING * program.length * largest(z).unsqueeze(1)
    above = reached - program.upper > _SIGN * torch.maximum(reached.abs(), program.upper.abs()) + nothing
    below = program.lower - reached > _SIGN * torch.maximum(reached.abs(), program.lower.abs()) + nothing
    better = torch.where(slack, 0, torch.where(above, 1, torch.where(below, -1, side))).to(torch.int8)
    if curvature is None:  # multipliers of less than a rounding are left out, and the point is right without them
        y, side = torch.where(slack, 0.0, y), torch.where(slack, 0, side).to(torch.int8)
        settled = judge(program, z, y)[0] <= _RESIDUAL
    else:
        assert isinstance(saddle, Saddle)
        better = torch.where(saddle.sound.unsqueeze(1), better, side)  # dependent rows say nothing of the next guess
        right = saddle.sound & (residual < _RESIDUAL)
        settled = right & (better == side).all(1) & ~(above | below).any(1)
    return Point(z, y, side, settled, steps, _tight(steps), saddle), better


def _near(
    program: Program, side: Tensor, saddle: Singular | SparseSaddle, center: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """The solution for a guess that is nearest to a point, and its multipliers."""
    right, target = -program.q, program.target(side)
    if center is None:
        z, y, _ = saddle.solve(right, target)
    else:
        at, pull = center[0], torch.where(side != 0, center[1], 0.0)
        right = right - times(program.Q, at) - times_transposed(program.rows, pull)
        terms = largest(torch.cat((program.q, target, at, pull), 1))
        dz, dy, _ = saddle.solve(right, target - times(program.rows, at), terms=terms)
        z, y = at + dz, pull + dy
    return z, y


def independent_rows(rows: Tensor, among: Tensor, equalities: int = 0) -> Tensor:
    """A largest set of independent rows, equations first: Cholesky with diagonal pivoting, sample by sample.

    Args:
        rows: `(B, r, n)`.
        among: the rows to choose from, `(B, r)`.
        equalities: how many of the first rows are chosen first.

    Returns:
        The rows chosen, bool `(B, r)`.
    """
    tiny = torch.finfo(rows.dtype).tiny
    unit = rows / rows.norm(dim=2, keepdim=True).clamp_min(tiny)
    left = torch.where(among, unit.square().sum(2), 0.0)  # squared distance to the span of those chosen
    first = torch.arange(rows.shape[1], device=rows.device) < equalities
    chosen, sample = torch.zeros_like(among), torch.arange(len(rows), device=rows.device)
    steps = min(rows.shape[1:])
    lower = rows.new_zeros(*rows.shape[:2], steps)  # the factor of the chosen rows' products, column by column
    for step in range(steps):
        free = torch.where(chosen | (left < _DEPENDENT), 0.0, left)
        if not bool(free.any()):
            break
        best = (free + 2.0 * (first & (free > 0))).argmax(1)
        usable = free[sample, best] > 0
        chosen[sample[usable], best[usable]] = True
        column = times(unit, unit[sample, best]) - times(lower[:, :, :step], lower[sample, best, :step])
        column = column * (usable / left[sample, best].clamp_min(tiny).sqrt()).unsqueeze(1)
        lower[:, :, step] = column
        left = torch.where(among, left - column.square(), 0.0)
    return chosen
