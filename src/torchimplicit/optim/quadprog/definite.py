"""Programs with a definite `Q`: bounds are found by pivoting or from inside, the solution by Cholesky factors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.active_set import Point, Signs, polish, repaired, with_equations
from torchimplicit.optim.quadprog.far import INFINITE
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


@dataclass(frozen=True)
class Start:
    """Programs with a definite `Q` whose bounds have been looked for by pivoting.

    Attributes:
        solver: of the programs.
        active: the bounds that were found, `(B, r)`.
        promising: whether pivoting came to an end, `(B,)`; None where there was nothing to look for.
        point: the solution on those, if they are right.
        better: the next guess, `(B, r)`.
    """

    solver: CholeskySolver
    active: Tensor
    promising: Tensor | None
    point: Point
    better: Tensor

    @staticmethod
    def of(program: Program, cholesky: Tensor, guess: Tensor | None, max_steps: int) -> Start:
        """Looks for the bounds of programs.

        Args:
            program: the programs; those that hold NaN, or have no solution, come to nothing.
            cholesky: factor of `Q`, `(B, n, n)`.
            guess: bounds that may be met, `(B, r)`; None starts cold.
            max_steps: of the pivoting.
        """
        prepared, promising, crowded = Prepared.of(program, cholesky), None, False
        if program.rows.shape[1] == program.equalities:
            active, steps = program.locked.to(torch.int8), program.q.new_zeros(program.batch, dtype=torch.int64)
        else:
            # Where many rows meet few unknowns, those of a guess depend on each other: it ends early or never.
            crowded = program.rows.shape[1] - program.equalities >= _CROWDED * program.q.shape[1]
            rounds = min(_FEW_PIVOTS if crowded else _PIVOTS, max_steps)
            active, steps, promising = pivot(Board.of(prepared), guess, rounds, shift=not crowded)
        solver = CholeskySolver(prepared, strict=True)
        if crowded and promising is not None and not bool(promising.any()):
            return Start(solver, active, promising, replace(Point.nothing(program), steps=steps), active)
        return Start(solver, active, promising, *solver.attempt(active, steps))

    def take(self, index: Tensor) -> Start:
        """Those of some of the programs."""
        if len(index) == len(self.active):
            return self
        promising = None if self.promising is None else self.promising[index]
        rest = self.active[index], promising, self.point.take(index), self.better[index]
        return Start(self.solver.take(index), *rest)

    def finished(self, max_steps: int) -> Point:
        """Solves programs whose rows depend on each other in no way that matters.

        Args:
            max_steps: of the interior point, where pivoting did not get there.
        """
        rounds = 1 if self.promising is None else _ROUNDS
        found = self.point
        if found.kkt is not None:  # pivoting was not in vain
            first = found, self.better
            found = polish(self.solver, self.active, found.steps, rounds, self.promising, first)
        if found.sure or self.promising is None:
            return found
        left = torch.nonzero(~found.optimal).flatten()
        if len(left):  # the interior point has seen all rows that could hold: weakly active ones need no second look
            inside = _from_inside(replace(self.solver.take(left), strict=False), max_steps)
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
        target, count = program.target(active), active.shape[1]
        missed = prepared.w.squeeze(2) - target
        missed = missed if kkt.index is None else missed.gather(1, kkt.index)
        y = kkt.scatter(kkt.multipliers(missed), count)
        pulled = times_transposed(program.rows, y)
        z = prepared.free - solved(prepared.cholesky, pulled)
        seen = self._seen(active, z, y, pulled)
        # A small difference of large numbers has lost their rounding, which no residual of theirs shows.
        whole = (largest(prepared.free, keepdim=True) <= seen.terms.farthest * _CANCELS).squeeze(1)
        right = kkt.sound & (seen.terms.most < INFINITE).squeeze(1)  # bounds from there on are none
        optimal = right & whole & (seen.residual <= _ACCURATE) & ~seen.against
        if bool(optimal.all()):
            return Point(z, y, active, optimal, steps, seen.residual, kkt=kkt, sure=True), active
        if bool((kkt.sound & ~seen.against & ~optimal).any()):  # the right guess, but not to the last digit
            kkt.careful = True
            z, y, left = kkt.solve(-program.q, kkt.gather(target), _TO_THE_END)
            y, right = kkt.scatter(y, count), right & (left < _RESIDUAL)
            seen = self._seen(active, z, y)
        optimal = right & ~seen.against
        point = Point(z, y, active, optimal, steps, seen.residual, kkt=kkt)
        signs = seen.signs
        beyond = signs.room < -signs.rounding
        better = repaired(program, active, signs.idle(program, active), beyond, seen.terms.reached)
        return point, torch.where(kkt.sound.unsqueeze(1), better, active)  # dependent rows say nothing of the next

    def _seen(self, active: Tensor, z: Tensor, y: Tensor, pulled: Tensor | None = None) -> _Seen:
        program, terms = self.program, Terms.of(self.program, z, y, pulled)
        signs, on = Signs.of(program, active, y, terms), active != 0
        if self.strict:
            well = torch.where(on, signs.push, signs.room - signs.rounding) > 0
            against = ~(well | (on & program.locked) | (program.length == 0))
        else:
            against = signs.idle(program, active) | (~on & (signs.room < -signs.rounding))
        # How well rows are met that are to be is the residual's to say.
        return _Seen(terms, at_least(program, terms), signs, against.any(1))


class _Seen(NamedTuple):
    """The solution of a guess: its terms, its residual, its signs, and which programs these refute."""

    terms: Terms
    residual: Tensor
    signs: Signs
    against: Tensor
