"""Looks for the solutions of programs: by the shortest way where that leads there, by the sure one elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.active_set import Point
from torchimplicit.optim.quadprog.convexity import convexified
from torchimplicit.optim.quadprog.definite import definite
from torchimplicit.optim.quadprog.far import ever_further, within
from torchimplicit.optim.quadprog.general import general
from torchimplicit.optim.quadprog.kkt import factor, is_definite
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.verdict import judge

_MANY_ROWS = 32.0  # per unknown: with more, a matrix of rows and rows takes more than all else
_FEW_ROWS = 32


@dataclass
class Found:
    """What a search ends with.

    Attributes:
        program: the programs, their `Q` rid of what its dtype has rounded.
        point: optimal where it is a solution.
        convex: which programs are, `(B,)`.
    """

    program: Program
    point: Point
    convex: Tensor


def search(program: Program, guess: Tensor | None, max_steps: int, rounding: float = 0.0) -> Found:
    """Looks for solutions of programs that may have none.

    Args:
        program: the programs.
        guess: bounds that may be met, `(B, r)`.
        max_steps: of the methods that guess which bounds are met.
        rounding: of the dtype that they came in.
    """
    curvature, sound = factor(program.Q)
    convex = is_definite(program.Q, curvature, sound)
    quick = left = None  # which go the short way, and which are still to be solved: None for all
    if not bool(convex.all()):
        weak, quick, convex = torch.nonzero(~convex).flatten(), convex, convex.clone()
        convex[weak], Q = convexified(program.Q[weak], rounding)
        program = replace(program, Q=program.Q.index_copy(0, weak, Q)) if rounding else program
        left = torch.nonzero(convex).flatten()
    if program.rows.shape[1] - program.equalities > max(_FEW_ROWS, _MANY_ROWS * program.q.shape[1]):
        quick = torch.zeros_like(convex)
    found: Point | None = None
    for reach in ever_further(program):
        near = program if reach is None else within(program, reach)
        if left is None:
            found = _attempt(near, program, curvature, quick, guess, max_steps)
        else:
            found = Point.nothing(program) if found is None else found
            some = None if guess is None else guess[left]
            part = program.take(left)
            near = part if reach is None else near.take(left)
            point = _attempt(near, part, curvature[left], None if quick is None else quick[left], some, max_steps)
            point.steps = point.steps + found.steps[left]
            found.put(left, point)
        if found.sure:
            break
        left = torch.nonzero(~found.optimal & convex).flatten()
        if not len(left):
            break
    assert found is not None
    return Found(program, found, convex)


def solutions(program: Program) -> Tensor:
    """Of programs that have one, `(B, n)`."""
    return search(program, None, 100).point.z


def _attempt(
    near: Program, stated: Program, curvature: Tensor, quick: Tensor | None, guess: Tensor | None, max_steps: int
) -> Point:
    """Solves programs by the way that eliminates most, and those that resist or do not go that way by `general`."""
    if quick is None:  # all
        point = _definite(near, stated, curvature, guess, max_steps)
        if point.sure:
            return point
    else:
        point, at = Point.nothing(stated), torch.nonzero(quick).flatten()
        if len(at):
            some = None if guess is None else guess[at]
            point.put(at, _definite(near.take(at), stated.take(at), curvature[at], some, max_steps))
    left = torch.nonzero(~point.optimal).flatten()
    if not len(left):
        return point
    found = general(near.take(left), stated.take(left), None if guess is None else guess[left], max_steps)
    found.steps += point.steps[left]
    point.put(left, found)
    return point


def _definite(near: Program, stated: Program, curvature: Tensor, guess: Tensor | None, max_steps: int) -> Point:
    """Solves programs that are `definite`, and has them judged as stated."""
    point = definite(near, curvature, guess, max_steps)
    if not (point.sure and near is stated):
        point.residual, solved = judge(stated, point.z, point.y, point.residual if near is stated else None)
        point.optimal, point.sure = point.optimal & solved, False
    return point
