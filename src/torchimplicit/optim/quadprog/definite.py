"""Programs with a definite `Q`: bounds are found by pivoting or from inside, the solution by Cholesky factors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.active_set import Point, polish, repaired, with_equations, wrong
from torchimplicit.optim.quadprog.interior import interior
from torchimplicit.optim.quadprog.kkt import KKT, solved
from torchimplicit.optim.quadprog.pivoting import Board, pivot
from torchimplicit.optim.quadprog.prepare import Prepared
from torchimplicit.optim.quadprog.program import Program, Terms, largest, times_transposed
from torchimplicit.optim.quadprog.reduction import reduce
from torchimplicit.optim.quadprog.verdict import at_least

_FEW_ROWS = 32  # small matrices cost no less in single precision
_PIVOTS = 16
_CROWDED = 2  # rows per unknown, from which on pivoting ends within a few rounds or is in vain
_FEW_PIVOTS = 4
_ROUNDS = 4
_ACCURATE = 1e-12  # no refinement makes it better
_RESIDUAL = 1e-11
_TO_THE_END = 1e-15
_CANCELS = 100.0  # what the rows leave of the solution without them keeps all but two digits


def definite(program: Program, cholesky: Tensor, guess: Tensor | None, max_steps: int) -> Point:
    """Solves programs whose rows depend on each other in no way that matters.

    Args:
        program: the programs.
        cholesky: factor of `Q`, `(B, n, n)`.
        guess: bounds that may be met, `(B, r)`; None starts cold.
        max_steps: of the pivoting, and of the interior point after it.
    """
    prepared = Prepared.of(program, cholesky)
    solver = CholeskySolver(prepared, strict=True)
    if program.rows.shape[1] == program.equalities:
        active = program.locked.to(torch.int8)
        return polish(solver, active, torch.zeros_like(program.q[:, 0], dtype=torch.int64), 1)
    # Where many rows meet few unknowns, those of a guess depend on each other: pivoting ends early or never.
    crowded = program.rows.shape[1] - program.equalities >= _CROWDED * program.q.shape[1]
    active, steps, ended = pivot(Board.of(prepared), guess, min(_FEW_PIVOTS if crowded else _PIVOTS, max_steps))
    if bool(ended.any()):
        found = polish(solver, active, steps, _ROUNDS, ended)
    else:
        found = replace(Point.nothing(program), steps=steps)
    if found.sure:
        return found
    left = torch.nonzero(~found.optimal).flatten()
    if len(left):  # the interior point has seen all rows that could hold: weakly active ones need no second look
        inside = _from_inside(replace(solver.take(left), strict=False), max_steps)
        inside.steps = inside.steps + found.steps[left]
        found.put(left, inside)
    return found


def _from_inside(solver: CholeskySolver, max_steps: int) -> Point:
    """By an interior point whose accuracy is enough for a guess: single precision, but for small programs."""
    program, start = solver.program, reduce(solver.prepared)
    p = program.equalities
    few = program.rows.shape[1] - p < _FEW_ROWS
    dtype, tol = (torch.float64, 1e-6) if few else (torch.float32, 1e-5)
    bounds = (program.lower[:, p:] / start.scale, program.upper[:, p:] / start.scale)
    begin, lower, upper = (x.to(dtype) for x in (start.w, *bounds))
    inner = interior(start.reduction.to(dtype), begin, lower, upper, tol, max_steps)
    active = torch.cat((torch.ones_like(program.lower[:, :p], dtype=torch.int8), inner.active), 1)
    return polish(solver, with_equations(program, active), inner.steps, _ROUNDS)


@dataclass(frozen=True)
class CholeskySolver:
    """Solves guesses for programs with a definite `Q` and independent rows.

    Attributes:
        prepared: the programs.
        strict: leave programs alone where a row is at a bound without holding anything: others may hold in its place,
            and an interior point tells.
    """

    prepared: Prepared
    strict: bool

    @property
    def program(self) -> Program:
        """The programs."""
        return self.prepared.program

    def take(self, index: Tensor) -> CholeskySolver:
        """That of some of the programs."""
        if len(index) == self.program.batch:
            return self
        return CholeskySolver(self.prepared.take(index), self.strict)

    def attempt(self, active: Tensor, steps: Tensor) -> tuple[Point, Tensor]:
        """The solution for a guess, and the next guess."""
        program, prepared = self.program, self.prepared
        kkt = KKT.build(program.Q, program.rows, active, prepared.cholesky, prepared.gram, prepared.in_place)
        target = program.target(active)
        y = kkt.scatter(solved(kkt.complement, kkt.gather(prepared.w - target)), active.shape[1])
        pulled = times_transposed(program.rows, y)
        z = prepared.free - solved(prepared.cholesky, pulled)
        seen = self._seen(active, z, y, pulled)
        # A small difference of large numbers has lost their rounding, which no residual of theirs shows.
        whole = (largest(prepared.free, keepdim=True) <= _CANCELS * seen.terms.farthest).squeeze(1)
        right, optimal = kkt.sound, whole & (seen.residual <= _ACCURATE) & ~seen.against & kkt.sound
        if bool(optimal.all()):
            return Point(z, y, active, optimal, steps, seen.residual, kkt=kkt, sure=True), active
        if bool((kkt.sound & ~seen.against & ~optimal).any()):  # the right guess, but not to the last digit
            kkt.careful = True
            z, y, left = kkt.solve(-program.q, kkt.gather(target), _TO_THE_END)
            y, right = kkt.scatter(y, active.shape[1]), right & (left < _RESIDUAL)
            seen = self._seen(active, z, y)
        optimal = right & ~seen.against
        point = Point(z, y, active, optimal, steps, seen.residual, kkt=kkt)
        better = repaired(program, active, seen.slack, seen.room < -seen.rounding, seen.terms.reached)
        return point, torch.where(kkt.sound.unsqueeze(1), better, active)  # dependent rows say nothing of the next

    def _seen(self, active: Tensor, z: Tensor, y: Tensor, pulled: Tensor | None = None) -> _Seen:
        program, terms = self.program, Terms.of(self.program, z, y, pulled)
        slack, room, rounding = wrong(program, active, y, terms)
        near = (room <= rounding) & program.filled if self.strict else room < -rounding
        against = slack | (near & (active == 0))  # how well rows are met that are to be is the residual's to say
        return _Seen(terms, at_least(program, terms), slack, room, rounding, against.any(1))


class _Seen(NamedTuple):
    """The solution of a guess: its terms, its residual, what `wrong` says of it, and which are refuted."""

    terms: Terms
    residual: Tensor
    slack: Tensor
    room: Tensor
    rounding: Tensor
    against: Tensor
