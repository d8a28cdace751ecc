"""Looks for the solutions of programs: by the shortest way where that leads there, by the sure one elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.active_set import Point, settle
from torchimplicit.optim.quadprog.convexity import convexified
from torchimplicit.optim.quadprog.far import ever_further, within
from torchimplicit.optim.quadprog.general import general
from torchimplicit.optim.quadprog.interior import interior
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.reduction import gram, reduce
from torchimplicit.optim.quadprog.saddle import factor, is_definite
from torchimplicit.optim.quadprog.verdict import judge

_MANY_ROWS = 8.0  # per unknown: with more, one small factor costs more than the whole system by its unknowns
_FEW_ROWS = 32  # small matrices cost no less in single precision
_ROUNDS = 4
_WARM_ROUNDS = 6


@dataclass
class Found:
    """What a search ends with.

    Attributes:
        program: the programs, their `Q` rid of what its dtype has rounded.
        point: settled where it is a solution.
        residual: see `judge`, `(B,)`.
        convex: which programs are, `(B,)`.
    """

    program: Program
    point: Point
    residual: Tensor
    convex: Tensor


def search(program: Program, guess: Tensor | None, max_steps: int, rounding: float = 0.0) -> Found:
    """Looks for solutions of programs that may have none.

    Args:
        program: the programs.
        guess: bounds that may be met, `(B, r)`.
        max_steps: of the interior-point method.
        rounding: of the dtype that they came in.
    """
    curvature, sound = factor(program.Q)
    definite = is_definite(program.Q, curvature, sound)
    convex = definite.clone()
    if not bool(definite.all()):
        weak = torch.nonzero(~definite).flatten()
        convex[weak], Q = convexified(program.Q[weak], rounding)
        program = replace(program, Q=program.Q.index_copy(0, weak, Q)) if rounding else program
    many = program.rows.shape[1] - program.equalities > max(_FEW_ROWS, _MANY_ROWS * program.q.shape[1])
    quick = torch.zeros_like(definite) if many else definite
    found: Found | None = None
    left = torch.nonzero(convex).flatten()
    for reach in ever_further(program):
        every = len(left) == program.batch
        part = program if every else program.take(left)
        near = part if reach is None else within(part, reach[left])
        some = None if guess is None else guess[left]
        point, residual = _attempt(near, part, curvature if every else curvature[left], quick[left], some, max_steps)
        if found is None and every:
            found = Found(program, point, residual, convex)
        else:
            found = _nothing(program, convex) if found is None else found
            point.steps = point.steps + found.point.steps[left]
            found.point.put(left, point)
            found.residual[left] = residual
        left = torch.nonzero(~found.point.settled & convex).flatten()
        if not len(left):
            break
    assert found is not None
    return found


def solutions(program: Program) -> Tensor:
    """Of programs that have one, `(B, n)`."""
    return search(program, None, 100).point.z


def _nothing(program: Program, convex: Tensor) -> Found:
    return Found(program, Point.nothing(program), torch.full_like(program.q[:, 0], torch.inf), convex)


def _attempt(
    near: Program, stated: Program, curvature: Tensor, quick: Tensor, guess: Tensor | None, max_steps: int
) -> tuple[Point, Tensor]:
    """Solves programs by the way that eliminates most, and those that resist or do not go that way by `general`."""
    point, residual = Point.nothing(stated), torch.full_like(stated.q[:, 0], torch.inf)
    at = torch.nonzero(quick).flatten()
    if len(at):
        every, some = len(at) == stated.batch, None if guess is None else guess[at]
        found = _definite(near.take(at), curvature if every else curvature[at], some, max_steps)
        residual[at], solved = judge(stated.take(at), found.z, found.y)
        found.settled = found.settled & solved
        if every:  # with its factor
            point = found
        else:
            point.put(at, found)
    left = torch.nonzero(~point.settled).flatten()
    if len(left):
        some = None if guess is None else guess[left]
        found, residual[left] = general(near.take(left), stated.take(left), some, max_steps)
        found.steps = found.steps + point.steps[left]
        point.put(left, found)
    return point, residual


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
