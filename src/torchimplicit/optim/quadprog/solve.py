"""Solves a batch of quadratic programs: interior point for a guess of the active bounds, active set for the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.optim.quadprog.active_set import Point, independent_rows, settle
from torchimplicit.optim.quadprog.feasibility import violation
from torchimplicit.optim.quadprog.interior import interior
from torchimplicit.optim.quadprog.prepare import Units, convexified, without_redundant
from torchimplicit.optim.quadprog.program import Program, largest, times, times_transposed
from torchimplicit.optim.quadprog.reduction import gram, reduce
from torchimplicit.optim.quadprog.saddle import Saddle, factor, is_definite

# Precision and tolerance of the interior point, rounds of repair. Single precision is enough for a guess of bounds.
_STAGES = ((torch.float32, 1e-5, 4), (torch.float64, 1e-9, 4), (torch.float64, 1e-12, 12))
_FIRST_OF_FEW = (torch.float64, 1e-6, 4)  # small matrices cost no less in single precision
_FEW_ROWS = 32
_WARM_ROUNDS = 6
_GOOD = 1e-7  # residual of a solution that could not be made exact, for its rows depend on each other
_PROXIMAL = 1e-4
_PROXIMAL_STEPS = 50
_STILL = 1e-9


@dataclass
class Outcome:
    """What was found.

    Attributes:
        point: solutions; of programs without one zero, and no bound counts as met.
        status: `Status` values, `(B,)`.
        residual: see `Program.residual`, `(B,)`.
        proof: multipliers that prove infeasibility, `(B, r)`, and directions along which the objective falls for ever,
            `(B, n)`; zero elsewhere. None if all are solved.
    """

    point: Point
    status: Tensor
    residual: Tensor
    proof: tuple[Tensor, Tensor] | None = None


def solve(program: Program, guess: Tensor | None, max_steps: int, rounding: float = 0.0) -> Outcome:
    """Solves every program, or says why it has no solution.

    Args:
        program: finite but for missing bounds.
        guess: bounds that may be met, `(B, r)`, from an earlier solution; None starts cold.
        max_steps: of the interior-point method.
        rounding: of the dtype that the program came in: `Q` may be indefinite by some of it.
    """
    stated, program = program, without_redundant(program)
    curvature, sound = factor(program.Q)
    definite = is_definite(program.Q, curvature, sound)
    ray = torch.zeros_like(program.q)
    if bool(definite.all()):
        point = _definite(program, curvature, guess, max_steps)
    else:
        point = _empty(program)
        strict, weak = (torch.nonzero(which).flatten() for which in (definite, ~definite))
        if len(strict):
            some = None if guess is None else guess[strict]
            point.put(strict, _definite(program.take(strict), curvature[strict], some, max_steps))
        some = None if guess is None else guess[weak]
        found, ray[weak] = _semidefinite(program.take(weak), some, max_steps, rounding)
        point.put(weak, found)
    if program is not stated:  # an equation that was left out must be met all the same
        point.settled = point.settled & (stated.doubt(point.z, point.y) < _GOOD)
    return _judge(stated, point, ray, rounding)


def _judge(program: Program, point: Point, ray: Tensor, rounding: float) -> Outcome:
    residual, solved = program.residual(point.z, point.y), point.settled
    if not bool(solved.all()):
        solved = solved | (program.doubt(point.z, point.y) < _GOOD)
    status = torch.where(solved, int(Status.CONVERGED), int(Status.MAX_STEPS))
    if bool(solved.all()):
        return Outcome(point, status, residual)
    left = torch.nonzero(~solved).flatten()
    part = program.take(left)
    contradiction = torch.zeros_like(point.y)
    t, infeasible = violation(part, torch.zeros_like(part.q))
    contradiction[left] = torch.where(infeasible.unsqueeze(1), t, 0.0)
    unbounded, concave = (ray[left] != 0).any(1), ~convexified(part.Q, rounding)[0]
    verdict = status[left]
    for which, word in ((unbounded, Status.UNBOUNDED), (infeasible, Status.INFEASIBLE), (concave, Status.NONCONVEX)):
        verdict = torch.where(which, int(word), verdict)
    status[left] = verdict
    ray = torch.where((status == Status.UNBOUNDED).unsqueeze(1), ray, 0.0)
    return Outcome(point, status, residual, (contradiction, ray))


def _empty(program: Program) -> Point:
    y = torch.zeros_like(program.lower)
    steps = torch.zeros(program.batch, dtype=torch.int64, device=y.device)
    return Point(torch.zeros_like(program.q), y, y.to(torch.int8), steps == 1, steps)


def _definite(program: Program, curvature: Tensor, guess: Tensor | None, max_steps: int) -> Point:
    """Programs whose `Q` is definite."""
    steps = torch.zeros(program.batch, dtype=torch.int64, device=program.q.device)
    bounded = program.rows.shape[1] > program.equalities
    if guess is None and bounded:
        return _from_inside(program, curvature, gram(program, curvature), max_steps)
    guess = torch.ones_like(program.lower, dtype=torch.int8) if guess is None else guess
    # With the matrix another guess costs little more than a small factor.
    matrix = gram(program, curvature) if bounded else None
    found = settle(program, guess, steps, _WARM_ROUNDS, curvature, matrix)
    left = torch.nonzero(~found.settled).flatten()
    if not len(left) or not bounded:
        return found
    matrix = None if matrix is None else matrix[left]
    inside = _from_inside(program.take(left), curvature[left], matrix, max_steps)
    inside.steps = inside.steps + found.steps[left]
    found.put(left, inside)
    return found


def _from_inside(program: Program, curvature: Tensor, matrix: Tensor | None, max_steps: int) -> Point:
    """By interior points of more and more accuracy, each as the guess of the active-set method."""
    found: Point | None = None
    left = torch.arange(program.batch, device=program.q.device)
    few = matrix is None or program.rows.shape[1] - program.equalities < _FEW_ROWS
    for dtype, tol, rounds in (_FIRST_OF_FEW, *_STAGES[1:]) if few else _STAGES:
        p, start = program.equalities, reduce(program, curvature, matrix)
        bounds = (program.lower[:, p:] / start.scale, program.upper[:, p:] / start.scale)
        begin, lower, upper = (x.to(dtype) for x in (start.w, *bounds))
        inner = interior(start.reduction.to(dtype), begin, lower, upper, tol, max_steps)
        side = torch.cat((torch.ones_like(program.lower[:, :p], dtype=torch.int8), inner.side), 1)
        point = settle(program, side, inner.steps, rounds, curvature, matrix)
        _fall_back(program, point, curvature, inner.y / start.scale, side)
        if found is None:
            found = point
        else:
            point.steps = point.steps + found.steps[left]
            found.put(left, point)
        # Where rows depend on each other no guess may settle: an interior point as good as that is the answer.
        again = torch.nonzero(~point.settled & ~(program.doubt(point.z, point.y) < _STILL)).flatten()
        if not len(again):
            break
        left, program, curvature = left[again], program.take(again), curvature[again]
        matrix = None if matrix is None else matrix[again]
    assert found is not None
    return found


def _fall_back(program: Program, point: Point, curvature: Tensor, y: Tensor, side: Tensor) -> None:
    """Takes the interior point where no set of bounds could be settled: rows that depend on each other."""
    left = torch.nonzero(~point.settled).flatten()
    if not len(left):
        return
    p, part = program.equalities, program.take(left)
    y = y[left]
    kept = independent_rows(part.rows, side[left] != 0, p)
    force = part.q + times_transposed(part.rows[:, p:], y)
    equations = Saddle.build(part.Q, part.rows[:, :p], kept[:, :p], curvature[left])
    z, nu, _ = equations.solve(-force, equations.gather(part.upper[:, :p]))
    nu = equations.scatter(nu, p)
    y = torch.cat((nu, y), 1)
    side = torch.where(kept, side[left], 0)
    # Where more bounds meet in a corner than there are unknowns, any independent ones of them tell where it is.
    corner = Saddle.build(part.Q, part.rows, side, curvature[left])
    at, _, _ = corner.solve(-part.q, corner.gather(part.target(side)))
    better = corner.sound & (part.doubt(at, y) < part.doubt(z, y))
    other = Point(torch.where(better.unsqueeze(1), at, z), y, side, point.settled[left], point.steps[left])
    finite = torch.nonzero(other.z.isfinite().all(1) & y.isfinite().all(1)).flatten()
    point.put(left[finite], other.take(finite))


def _semidefinite(program: Program, guess: Tensor | None, max_steps: int, rounding: float) -> tuple[Point, Tensor]:
    """Programs whose `Q` is not definite, solved in units in which rows and solution are about one."""
    units = Units.of(program)
    point, ray = _proximal(units.scaled(program), guess, max_steps, rounding)
    point.z, point.y = point.z * units.z, point.y * units.y
    return point, ray


def _proximal(program: Program, guess: Tensor | None, max_steps: int, rounding: float) -> tuple[Point, Tensor]:
    r"""Programs whose `Q` is not definite: the proximal point method, $z_{k+1} = \arg\min f(z) + \rho/2 \|z - z_k\|^2$.

    A linear program needs a finite number of its steps (R. T. Rockafellar, SIAM J. Control Optim. 14(5), 1976). Its
    steps tend to a ray along which an unbounded objective falls.
    """
    result, rays = _empty(program), torch.zeros_like(program.q)
    index = torch.arange(program.batch, device=program.q.device)
    size = program.Q.abs().amax((1, 2))
    weight = _PROXIMAL * torch.where(size > 0, size, largest(program.q).clamp_min(1e-30))
    center, (convex, Q) = torch.zeros_like(program.q), convexified(program.Q, rounding)
    program = replace(program, Q=Q)
    for _ in range(_PROXIMAL_STEPS):
        strict = program.Q + torch.diag_embed(weight.unsqueeze(1).expand_as(program.q))
        proximal = replace(program, Q=strict, q=program.q - weight.unsqueeze(1) * center)
        curvature, definite = factor(strict)
        convex = convex & definite
        near = _definite(proximal, curvature, guess, max_steps)
        point = settle(program, near.side, near.steps, 4, None, None, near.z)
        ray = _ray(program, near.z - center)
        solved = near.settled | (proximal.doubt(near.z, near.y) < _GOOD)
        exact = point.settled & convex
        lost = ~exact & (~convex | ~solved | (ray != 0).any(1))
        # Without an exact answer the proximal point is one, once it no longer moves.
        still = ~exact & ~lost & (program.doubt(near.z, near.y) < _STILL)
        done = exact | lost | still
        best, multipliers, side = (
            torch.where(exact.unsqueeze(1), mine, its)
            for mine, its in ((point.z, near.z), (point.y, near.y), (point.side, near.side))
        )
        steps = result.steps[index] + near.steps
        result.put(index, Point(best, multipliers, side, exact | still, steps))
        rays[index] = torch.where((convex & solved & ~exact).unsqueeze(1), ray, 0.0)
        left = torch.nonzero(~done).flatten()
        if not len(left):
            break
        program, center, guess = program.take(left), near.z[left], near.side[left]
        index, weight, convex = index[left], weight[left], convex[left]
    return result, rays


def _ray(program: Program, step: Tensor) -> Tensor:
    """A step as a direction, where the objective falls along it for ever and no bound is ever met; else zero."""
    d = step / largest(step).clamp_min(1e-30).unsqueeze(1)
    curved, moved = largest(times(program.Q, d)), times(program.rows, d)
    size = 1e-8 * program.rows.abs().sum(2)
    blocked = ((moved > size) & program.upper.isfinite()) | ((moved < -size) & program.lower.isfinite())
    flat = curved <= 1e-8 * program.Q.abs().amax((1, 2))
    falls = (program.q * d).sum(1) < -1e-8 * largest(program.q)
    return torch.where((flat & falls & ~blocked.any(1)).unsqueeze(1), d, 0.0)
