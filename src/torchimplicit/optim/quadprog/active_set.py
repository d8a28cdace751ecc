"""From a guess of the bounds that are met to the solution, exact to rounding: a primal-dual active-set method.

With the right guess one linear solve gives the solution. Where signs are wrong, rows are taken out (a multiplier that
pulls the wrong way) or in (a violated bound) and the solve is done again (M. Hintermueller, K. Ito, K. Kunisch, SIAM
J. Optim. 13(3), 2002), for those programs alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.kkt import KKT, Factored
from torchimplicit.optim.quadprog.program import Program, Terms, largest, times, times_transposed
from torchimplicit.optim.quadprog.singular import Saddle, Singular
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
        active: the bound that every row meets with a multiplier that is not zero: 1 upper, -1 lower, 0 none, `(B, r)`.
        optimal: whether they were found exactly, `(B,)`.
        steps: `(B,)`.
        residual: see `verdict.at_least`, `(B,)`.
        loose: whether the bounds that are met leave the solution, and the multipliers, undetermined, `(B, 2)`; None
            where they do not.
        kkt: the factor, if all were found with one.
        sure: all are optimal, to rounding: whoever knows so need not look again.
    """

    z: Tensor
    y: Tensor
    active: Tensor
    optimal: Tensor
    steps: Tensor
    residual: Tensor
    loose: Tensor | None = None
    kkt: Factored | None = None
    sure: bool = False

    @staticmethod
    def nothing(program: Program) -> Point:
        """Zero, for all programs."""
        y = torch.zeros_like(program.lower)
        steps = torch.zeros(program.batch, dtype=torch.int64, device=y.device)
        residual = torch.full_like(program.q[:, 0], torch.inf)
        return Point(torch.zeros_like(program.q), y, y.to(torch.int8), steps == 1, steps, residual)

    def put(self, index: Tensor, other: Point) -> None:
        """Overwrites some of the programs."""
        self.sure = False
        for mine, its in zip(self.parts(), other.parts(), strict=True):
            mine[index] = its
        if self.loose is not None or other.loose is not None:
            self.loose = tight(self.steps) if self.loose is None else self.loose
            self.loose[index] = tight(other.steps) if other.loose is None else other.loose
        mine, its = self.kkt, other.kkt
        if len(index) == len(self.z):
            self.kkt = its
        elif isinstance(mine, KKT) and isinstance(its, KKT):
            mine.put(index, its)
        else:
            self.kkt = None

    def take(self, index: Tensor) -> Point:
        """Some of the programs, without the factor."""
        loose = None if self.loose is None else self.loose[index]
        return Point(*(part[index] for part in self.parts()), loose=loose)

    def parts(self) -> tuple[Tensor, ...]:
        """All but `loose`, the factor and `sure`."""
        return self.z, self.y, self.active, self.optimal, self.steps, self.residual


def tight(steps: Tensor) -> Tensor:
    """`Point.loose` where nothing is."""
    return torch.zeros(len(steps), 2, dtype=torch.bool, device=steps.device)


class GuessSolver(Protocol):
    """Solves programs on the bounds that a guess takes to be met, where they are equations."""

    def attempt(self, active: Tensor, steps: Tensor) -> tuple[Point, Tensor]:
        """The solution for a guess, and the next guess."""
        ...

    def take(self, index: Tensor) -> Self:
        """That of some of the programs."""
        ...


def polish(solver: GuessSolver, active: Tensor, steps: Tensor, rounds: int, promising: Tensor | None = None) -> Point:
    """Repairs a guess until every sign is right, or gives up after some rounds.

    Args:
        solver: of the programs.
        active: the guess, `(B, r)`; see `Point.active` and `with_equations`.
        steps: taken so far, `(B,)`.
        rounds: how many guesses to try.
        promising: which guesses are worth repairing, `(B,)`; None for all.
    """
    index, found = None, None
    for _ in range(rounds):
        point, better = solver.attempt(active, steps)
        if found is None or index is None:
            found = point
        else:
            found.put(index, point)
        if point.sure:
            break
        open = ~point.optimal & (better != active).any(1)
        left = torch.nonzero(open if promising is None else open & promising).flatten()
        if not len(left):
            break
        promising = None  # those that go on were
        active, solver = better[left], solver.take(left)
        index, steps = left if index is None else index[left], steps[left] + 1
    assert found is not None
    return found


def with_equations(program: Program, active: Tensor) -> Tensor:
    """A guess in which equations are met, but for empty ones."""
    locked = program.locked.to(torch.int8)
    return torch.where(program.lower == program.upper, torch.where(active == 0, locked, active * locked), active)


def wrong(program: Program, active: Tensor, y: Tensor, terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows hold nothing though they are said to be met; how far all are from a bound, and what of it is rounding.

    A bound that is met without a multiplier counts as not met: the convention for weakly active constraints.
    """
    multiplier, reached = y * program.length, terms.reached
    slack = (active != 0) & ~program.locked & (active * multiplier <= _SIGN * largest(multiplier, keepdim=True))
    room = torch.minimum(program.upper - reached, reached - program.lower)
    return slack, room, _SIGN * terms.size + _NOTHING * terms.extent


def repaired(program: Program, active: Tensor, slack: Tensor, beyond: Tensor, reached: Tensor) -> Tensor:
    """The next guess: without the rows that hold nothing, with those that are beyond a bound."""
    return torch.where(slack, 0, torch.where(beyond, (reached > program.upper) * 2 - 1, active)).to(torch.int8)


@dataclass(frozen=True)
class SingularSolver:
    """Solves guesses for any convex programs and any rows.

    Attributes:
        program: the programs.
        center: solution and multipliers to stay near where those are not unique, `(B, n)` and `(B, r)`.
        build: factors the systems of the active rows, `(B, r)`; that of a sparse program is another.
    """

    program: Program
    center: tuple[Tensor, Tensor] | None = None
    build: Callable[[Program, Tensor], Saddle] = Singular.of

    def take(self, index: Tensor) -> SingularSolver:
        """That of some of the programs."""
        center = None if self.center is None else (self.center[0][index], self.center[1][index])
        return replace(self, program=self.program.take(index), center=center)

    def attempt(self, active: Tensor, steps: Tensor) -> tuple[Point, Tensor]:
        """The solution for a guess, and the next guess."""
        program = self.program
        kkt = self.build(program, active)
        z, y = self._near(active, kkt)
        terms = Terms.of(program, z, y)
        slack, room, rounding = wrong(program, active, y, terms)
        better = repaired(program, active, slack, room < -rounding, terms.reached)
        # Multipliers of less than a rounding are left out, and the point is right without them.
        y, active = torch.where(slack, 0.0, y), torch.where(slack, 0, active).to(torch.int8)
        residual = judge(program, z, y)[0]
        return Point(z, y, active, residual <= _RESIDUAL, steps, residual, kkt=kkt), better

    def _near(self, active: Tensor, kkt: Saddle) -> tuple[Tensor, Tensor]:
        """The solution for a guess that is nearest to the center, and its multipliers."""
        program = self.program
        right, target = -program.q, program.target(active)
        if self.center is None:
            z, y, _ = kkt.solve(right, target)
            return z, y
        at, multiplier = self.center[0], torch.where(active != 0, self.center[1], 0.0)
        right = right - times(program.Q, at) - times_transposed(program.rows, multiplier)
        terms = largest(torch.cat((program.q, target, at, multiplier), 1))
        dz, dy, _ = kkt.solve(right, target - times(program.rows, at), terms=terms)
        return at + dz, multiplier + dy


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
