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


@dataclass(frozen=True)
class Task:
    """Programs to be solved.

    Attributes:
        near: the programs without bounds that are far out.
        stated: the programs, by which a solution is judged.
        cholesky: factor of `Q`, `(B, n, n)`, where it is definite.
        guess: bounds that may be met, `(B, r)`; None without one.
    """

    near: Program
    stated: Program
    cholesky: Tensor
    guess: Tensor | None

    def take(self, index: Tensor) -> Task:
        """Some of the programs."""
        if len(index) == self.stated.batch:
            return self
        stated = self.stated.take(index)
        near = stated if self.near is self.stated else self.near.take(index)
        return Task(near, stated, self.cholesky[index], None if self.guess is None else self.guess[index])


def search(program: Program, guess: Tensor | None, max_steps: int, rounding: float = 0.0) -> Found:
    """Looks for solutions of programs that may have none.

    Args:
        program: the programs.
        guess: bounds that may be met, `(B, r)`.
        max_steps: of the methods that guess which bounds are met.
        rounding: of the dtype that they came in.
    """
    cholesky, sound = factor(program.Q)
    convex = is_definite(program.Q, cholesky, sound)
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
        task = Task(within(program, reach), program, cholesky, guess)
        if left is None:
            found = _attempt(task, quick, max_steps)
        else:
            found = Point.nothing(program) if found is None else found
            point = _attempt(task.take(left), None if quick is None else quick[left], max_steps)
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


def _attempt(task: Task, quick: Tensor | None, max_steps: int) -> Point:
    """Solves programs by the way that eliminates most, and those that resist or do not go that way by `general`."""
    if quick is None:  # all
        point = _definite(task, max_steps)
        if point.sure:
            return point
    else:
        point, at = Point.nothing(task.stated), torch.nonzero(quick).flatten()
        if len(at):
            point.put(at, _definite(task.take(at), max_steps))
    left = torch.nonzero(~point.optimal).flatten()
    if not len(left):
        return point
    hard = task.take(left)
    found = general(hard.near, hard.stated, hard.guess, max_steps)
    found.steps += point.steps[left]
    point.put(left, found)
    return point


def _definite(task: Task, max_steps: int) -> Point:
    """Solves programs that are `definite`, and has them judged as stated."""
    point, whole = definite(task.near, task.cholesky, task.guess, max_steps), task.near is task.stated
    if not (point.sure and whole):
        point.residual, solved = judge(task.stated, point.z, point.y, point.residual if whole else None)
        point.optimal, point.sure = point.optimal & solved, False
    return point
