"""Any convex programs: an interior point on the whole system, and the exact solution from its guess of the bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.active_set import Point, SingularSolver, polish, tight, with_equations
from torchimplicit.optim.quadprog.augmented import Augmented
from torchimplicit.optim.quadprog.exchange import to_the_last_digit
from torchimplicit.optim.quadprog.interior import interior
from torchimplicit.optim.quadprog.presolve import Presolved
from torchimplicit.optim.quadprog.program import Program, largest
from torchimplicit.optim.quadprog.singular import Singular
from torchimplicit.optim.quadprog.verdict import TOLERANCE, judge, met

_WARM_ROUNDS = 6
_STAGES = ((1e-9, 6, False), (0.0, 12, True))  # tolerance, rounds of repair, and whether digits matter more than time

Center = tuple[Tensor, Tensor]


def general(near: Program, stated: Program, guess: Tensor | None, max_steps: int) -> Point:
    """Solves programs whatever their rank.

    Args:
        near: the programs without bounds that are far out.
        stated: the programs as they are stated, by which they are judged.
        guess: bounds that may be met, `(B, r)`.
        max_steps: of the interior point.

    Returns:
        What was found, optimal where it is a solution.
    """
    whole = Presolved.of(near)
    result = Point.nothing(stated)
    index = left = torch.arange(stated.batch, device=stated.q.device)
    bounded = bool(stated.rows.shape[1])
    stages = ([None] if guess is not None or not bounded else []) + (list(_STAGES) if bounded else [])
    part, form = stated, whole
    # The quick stage ends where a guess is good enough, the accurate one as near as rounding lets it: few need that.
    for stage in stages:
        if len(left) < len(index):
            index, part, form = index[left], part.take(left), form.take(left)
        if stage is None:
            point, center, done = _guessed(form, guess), None, torch.ones_like(index, dtype=torch.bool)
        else:
            point, center, done = _from_inside(form.program, *stage, max_steps)
        point.residual = _judged(part, form, point, center)
        point.steps = point.steps + result.steps[index]
        result.put(index, point)
        left = torch.nonzero(~point.optimal & done).flatten()  # what got stuck would do so again
        if not len(left):
            break
    at = torch.nonzero(result.optimal).flatten()
    if len(at):
        result.loose = tight(result.steps)
        result.loose[at] = _loose(stated.take(at), whole.take(at), result.take(at))
    return result


def _guessed(form: Presolved, guess: Tensor | None) -> Point:
    """From a guess, or without any bound."""
    nothing = Point.nothing(form.program)
    active = nothing.active if guess is None else form.possible(guess)
    return polish(SingularSolver(form.program), with_equations(form.program, active), nothing.steps, _WARM_ROUNDS)


def _from_inside(
    program: Program, tol: float, rounds: int, accurate: bool, max_steps: int
) -> tuple[Point, Center, Tensor]:
    """By an interior point, from the bounds that it heads for, then from all that may be met; and what may go on."""
    system = Augmented.of(program, accurate)
    inner = interior(system, program.lower, program.lower, program.upper, tol, max_steps)
    center = torch.nan_to_num(inner.z), torch.nan_to_num(inner.y)
    solver = SingularSolver(program, center)
    point = polish(solver, with_equations(program, inner.active), inner.steps, rounds)
    left = torch.nonzero(~point.optimal).flatten()
    if len(left):  # some bounds that are met hold nothing
        some = solver.take(left)
        again = polish(some, with_equations(some.program, inner.near[left]), inner.steps[left], rounds)
        at = torch.nonzero(again.optimal).flatten()
        point.put(left[at], again.take(at))
    # Normal equations may have got stuck for want of digits, which the accurate stage does not share.
    return point, center, inner.done | system.diagonal


def _judged(program: Program, form: Presolved, point: Point, center: Center | None) -> Tensor:
    """Takes the interior point where that is nearer to a solution, of the stated program; the residuals."""
    to_the_last_digit(form.program, point)
    # The factor is that of presolved programs, the verdict is on the stated ones.
    point.kkt, point.active = None, form.active(point.active)
    point.z, point.y = form.stated(point.z, point.y)
    residual, point.optimal = judge(program, point.z, point.y)
    residual = torch.nan_to_num(residual, nan=torch.inf)
    if center is None or bool(point.optimal.all()):
        return residual
    z, y = form.stated(*center)
    inside, enough = judge(program, z, y)
    closer = ~point.optimal & ~(inside >= residual)
    point.optimal = point.optimal | (closer & enough)
    multiplier = y * program.length
    holding = torch.where(multiplier.abs() > TOLERANCE * largest(multiplier).unsqueeze(1), y.sign(), 0).to(torch.int8)
    row = closer.unsqueeze(1)
    point.active = torch.where(row, holding, point.active)
    point.z, point.y = torch.where(row, z, point.z), torch.where(row, y, point.y)
    return torch.where(closer, inside, residual)


def _loose(program: Program, form: Presolved, point: Point) -> Tensor:
    """Whether solutions, and multipliers, are not determined by the bounds that are met, `(B, 2)`."""
    holding = point.active != 0
    if form.repeats is not None:  # the others of a kind could hold as well
        holding = holding | (form.alike(holding) & met(program, point.z))
    rows = program.rows * form.units.rows.unsqueeze(2) * form.units.z.unsqueeze(1)
    return torch.stack(Singular.build(form.program.Q, rows, holding).loose(), 1)
