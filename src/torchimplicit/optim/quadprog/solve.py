"""Solves a batch of quadratic programs: interior point for a guess of the active bounds, active set for the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.optim.quadprog.active_set import Point, settle
from torchimplicit.optim.quadprog.augmented import Augmented
from torchimplicit.optim.quadprog.certificate import contradiction, ray
from torchimplicit.optim.quadprog.convexity import convexified
from torchimplicit.optim.quadprog.interior import interior
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.reduction import gram, reduce
from torchimplicit.optim.quadprog.repeats import Repeats
from torchimplicit.optim.quadprog.saddle import factor, is_definite
from torchimplicit.optim.quadprog.units import Units
from torchimplicit.optim.quadprog.verdict import judge

_MANY_ROWS = 1.3  # per unknown: more are not eliminated
_FEW_ROWS = 32  # small matrices cost no less in single precision
_ROUNDS = 4
_WARM_ROUNDS = 6
_STAGES = ((1e-9, 6), (0.0, 12))  # tolerance of the interior point, rounds of repair


@dataclass
class Outcome:
    """What was found.

    Attributes:
        point: solutions; of programs without one the best that was found, and no bound counts as met.
        status: `Status` values, `(B,)`.
        residual: see `judge`, `(B,)`.
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
    point, residual, convex, program = search(program, guess, max_steps, rounding)
    status = torch.where(point.settled, int(Status.CONVERGED), int(Status.MAX_STEPS))
    if bool(point.settled.all()):
        return Outcome(point, status, residual)
    left = torch.nonzero(~point.settled).flatten()
    part, proof = program.take(left), (torch.zeros_like(point.y), torch.zeros_like(point.z))
    blamed, direction = contradiction(part, point.z[left], found), ray(part, found)
    unbounded, infeasible, concave = (direction != 0).any(1), (blamed != 0).any(1), ~convex[left]
    verdict = status[left]
    for which, word in ((unbounded, Status.UNBOUNDED), (infeasible, Status.INFEASIBLE), (concave, Status.NONCONVEX)):
        verdict = torch.where(which, int(word), verdict)
    status[left] = verdict
    for mine, its, word in zip(proof, (blamed, direction), (Status.INFEASIBLE, Status.UNBOUNDED), strict=True):
        mine[left] = torch.where((verdict == word).unsqueeze(1), its, 0.0)
    return Outcome(point, status, residual, proof)


def search(
    program: Program, guess: Tensor | None, max_steps: int, rounding: float = 0.0
) -> tuple[Point, Tensor, Tensor, Program]:
    """Looks for solutions.

    Returns:
        What was found, settled where it is a solution; its residual; which programs are convex; and the programs, whose
        `Q` is rid of what its dtype has rounded.
    """
    curvature, sound = factor(program.Q)
    definite = is_definite(program.Q, curvature, sound)
    convex = definite.clone()
    if not bool(definite.all()):
        weak = torch.nonzero(~definite).flatten()
        convex[weak], Q = convexified(program.Q[weak], rounding)
        program = replace(program, Q=program.Q.index_copy(0, weak, Q)) if rounding else program
    inequalities = program.rows.shape[1] - program.equalities
    quick = definite if inequalities <= _MANY_ROWS * program.q.shape[1] else torch.zeros_like(definite)
    every = bool(quick.all())
    point, residual = _empty(program), torch.full_like(program.q[:, 0], torch.inf)
    at = torch.nonzero(quick).flatten()
    if len(at):
        part, some = (program, guess) if every else (program.take(at), None if guess is None else guess[at])
        found = _definite(part, curvature if every else curvature[at], some, max_steps)
        residual[at], solved = judge(part, found.z, found.y)
        found.settled = found.settled & solved
        if every:
            point = found
        else:
            point.put(at, found)
    at = torch.nonzero(~point.settled & convex).flatten()
    if len(at):
        some = None if guess is None else guess[at]
        found, residual[at] = _general(program.take(at), some, max_steps)
        found.steps = found.steps + point.steps[at]
        point.put(at, found)
    return point, residual, convex, program


def found(program: Program) -> Point:
    """The solutions of programs that have one."""
    return search(program, None, 100)[0]


def _empty(program: Program) -> Point:
    y = torch.zeros_like(program.lower)
    steps = torch.zeros(program.batch, dtype=torch.int64, device=y.device)
    return Point(torch.zeros_like(program.q), y, y.to(torch.int8), steps == 1, steps)


def _definite(program: Program, curvature: Tensor, guess: Tensor | None, max_steps: int) -> Point:
    """Programs whose `Q` is definite and whose rows depend on each other in no way that matters."""
    steps = torch.zeros(program.batch, dtype=torch.int64, device=program.q.device)
    bounded = program.rows.shape[1] > program.equalities
    if guess is None and bounded:
        return _from_inside(program, curvature, gram(program, curvature), max_steps)
    guess = torch.ones_like(program.lower, dtype=torch.int8) if guess is None else guess
    # With the matrix another guess costs little more than a small factor.
    matrix = gram(program, curvature) if bounded else None
    found = settle(program, guess, steps, _WARM_ROUNDS, curvature, matrix)
    left = torch.nonzero(~found.settled).flatten()
    if not len(left) or matrix is None:
        return found
    inside = _from_inside(program.take(left), curvature[left], matrix[left], max_steps)
    inside.steps = inside.steps + found.steps[left]
    found.put(left, inside)
    return found


def _from_inside(program: Program, curvature: Tensor, matrix: Tensor, max_steps: int) -> Point:
    """By an interior point whose accuracy is enough for a guess: single precision, but for small programs."""
    p, start = program.equalities, reduce(program, curvature, matrix)
    few = program.rows.shape[1] - p < _FEW_ROWS
    dtype, tol = (torch.float64, 1e-6) if few else (torch.float32, 1e-5)
    bounds = (program.lower[:, p:] / start.scale, program.upper[:, p:] / start.scale)
    begin, lower, upper = (x.to(dtype) for x in (start.w, *bounds))
    inner = interior(start.reduction.to(dtype), begin, lower, upper, tol, max_steps)
    side = torch.cat((torch.ones_like(program.lower[:, :p], dtype=torch.int8), inner.side), 1)
    return settle(program, side, inner.steps, _ROUNDS, curvature, matrix)


def _general(stated: Program, guess: Tensor | None, max_steps: int) -> tuple[Point, Tensor]:
    """Any convex programs, without repeated rows, in units in which all is about one; and their residuals."""
    result, residual = _empty(stated), torch.full_like(stated.q[:, 0], torch.inf)
    program, repeats = Repeats.merged(stated)
    units = Units.of(program)
    scaled, index = units.scaled(program), torch.arange(program.batch, device=program.q.device)
    bounded = bool(stated.rows.shape[1])
    warm = [(torch.inf, _WARM_ROUNDS)] if guess is not None or not bounded else []
    for tol, rounds in (*warm, *(_STAGES if bounded else ())):
        if tol == torch.inf:
            side = torch.zeros_like(scaled.lower, dtype=torch.int8) if guess is None else guess
            side = torch.where(scaled.target(side).isfinite(), side, 0)
            point, center = settle(scaled, side, result.steps[index], rounds), None
        else:
            inner = interior(Augmented.of(scaled), scaled.lower, scaled.lower, scaled.upper, tol, max_steps)
            center = torch.nan_to_num(inner.z), torch.nan_to_num(inner.y)
            point = settle(scaled, inner.side, inner.steps + result.steps[index], rounds, center=center)
            _retry(scaled, point, inner.near, rounds, center)
        residual[index] = _better(stated, units, repeats, point, center)
        result.put(index, point)
        left = torch.nonzero(~point.settled).flatten()
        if not len(left):
            break
        index, stated, scaled, units = index[left], stated.take(left), scaled.take(left), units.take(left)
        repeats = None if repeats is None else repeats.take(left)
    return result, residual


def _retry(program: Program, point: Point, side: Any, rounds: int, center: tuple[Tensor, Tensor]) -> None:
    """Tries, where nothing has settled, all bounds that may be met: some of them hold nothing."""
    left = torch.nonzero(~point.settled).flatten()
    if len(left):
        part, center = program.take(left), (center[0][left], center[1][left])
        again = settle(part, side[left], point.steps[left], rounds, center=center)
        at = torch.nonzero(again.settled).flatten()
        point.put(left[at], again.take(at))


def _better(
    program: Program, units: Units, repeats: Repeats | None, point: Point, center: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Takes the interior point where that is nearer to a solution, of the stated program; the residuals."""
    point.saddle = None
    if repeats is not None:
        point.side = repeats.apart(point.side, scaled=False)
    point.z, point.y = _stated(point.z, point.y, units, repeats)
    residual, point.settled = judge(program, point.z, point.y)
    residual = torch.nan_to_num(residual, nan=torch.inf)
    if center is None or bool(point.settled.all()):
        return residual
    z, y = _stated(*center, units, repeats)
    inside, enough = judge(program, z, y)
    closer = ~point.settled & ~(inside >= residual)
    point.settled = point.settled | (closer & enough)
    point.z, point.y = (torch.where(closer.unsqueeze(1), x, own) for x, own in ((z, point.z), (y, point.y)))
    return torch.where(closer, inside, residual)


def _stated(z: Tensor, y: Tensor, units: Units, repeats: Repeats | None) -> tuple[Tensor, Tensor]:
    """Solution and multipliers of the stated program."""
    y = y * units.y
    return z * units.z, y if repeats is None else repeats.apart(y, scaled=True)
