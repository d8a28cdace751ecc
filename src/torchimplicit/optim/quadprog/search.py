"""Looks for the solutions of programs: by the shortest way where that leads there, by the sure one elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.active_set import Point
from torchimplicit.optim.quadprog.convexity import convexified
from torchimplicit.optim.quadprog.definite import Start
from torchimplicit.optim.quadprog.far import ever_further, within
from torchimplicit.optim.quadprog.general import general
from torchimplicit.optim.quadprog.kkt import factor, is_definite
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.verdict import judge

_MANY_ROWS = 32.0  # per unknown: with more, a matrix of rows and rows takes more than all else
_FEW_ROWS = 32
_ALIKE = 1e4 * torch.finfo(torch.float64).eps  # of the largest entry: how far a matrix may be from its transpose


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
        start: where the programs as stated were begun, None elsewhere.
    """

    near: Program
    stated: Program
    cholesky: Tensor
    guess: Tensor | None
    start: Start | None

    def take(self, index: Tensor) -> Task:
        """Some of the programs."""
        if len(index) == self.stated.batch:
            return self
        stated = self.stated.take(index)
        near = stated if self.near is self.stated else self.near.take(index)
        guess = None if self.guess is None else self.guess[index]
        start = None if self.start is None else self.start.take(index)
        return Task(near, stated, self.cholesky[index], guess, start)


def begin(program: Program, guess: Tensor | None, max_steps: int) -> Start | None:
    """Tries the shortest way on programs that nobody has looked at; None where it leads nowhere for all of them.

    A definite program has one solution, however it was found. So one look at the end stands for all those before: what
    holds NaN, is not symmetric or definite, has bounds that cross or are none, is not `optimal` here.
    """
    if program.rows.shape[1] - program.equalities > max(_FEW_ROWS, _MANY_ROWS * program.q.shape[1]):
        return None
    cholesky, sound = factor(program.Q)
    if not bool(sound.any()):
        return None
    start = Start.of(program, cholesky, guess, max_steps)
    if start.point.kkt is None:  # pivoting in vain
        return start
    point, plain = start.point, is_definite(program.Q, cholesky, sound) & _plain(program)
    if not bool(plain.all()):
        point.optimal, point.sure = point.optimal & plain, False
    return start


def _plain(program: Program) -> Tensor:
    """Which programs have a symmetric `Q` and bounds that do not cross, `(B,)`."""
    Q, apart = program.Q, program.lower <= program.upper
    alike = (Q - Q.mT).abs_().amax((1, 2)) <= Q.diagonal(dim1=1, dim2=2).amax(1) * _ALIKE
    return alike & apart.all(1)


def search(
    program: Program, guess: Tensor | None, max_steps: int, rounding: float = 0.0, start: Start | None = None
) -> Found:
    """Looks for solutions of programs that may have none.

    Args:
        program: the programs.
        guess: bounds that may be met, `(B, r)`.
        max_steps: of the methods that guess which bounds are met.
        rounding: of the dtype that they came in.
        start: where they were begun, if they were.
    """
    start = begin(program, guess, max_steps) if start is None else start
    if start is not None and start.point.sure:
        return Found(program, start.point, start.point.optimal)
    cholesky, sound = factor(program.Q)
    definite = is_definite(program.Q, cholesky, sound)
    convex = definite.clone()
    weak = torch.nonzero(~convex).flatten()
    if len(weak):
        convex[weak], Q = convexified(program.Q[weak], rounding)
        program = replace(program, Q=program.Q.index_copy(0, weak, Q)) if rounding else program
    quick = definite if start is not None else torch.zeros_like(definite)
    found = Point.nothing(program) if start is None else start.point
    found.steps = torch.where(found.optimal, found.steps, 0)  # they are counted where it goes on
    left = torch.nonzero(~found.optimal & convex).flatten()
    for reach in ever_further(program) if len(left) else ():
        task = Task(within(program, reach), program, cholesky, guess, start if reach is None else None)
        start = None  # of the programs with all their bounds, and used up
        point = _attempt(task.take(left), quick[left], max_steps)
        point.steps = point.steps + found.steps[left]
        found.put(left, point)
        left = torch.nonzero(~found.optimal & convex).flatten()
        if not len(left):
            break
    return Found(program, found, convex)


def solutions(program: Program) -> Tensor:
    """Of programs that have one, `(B, n)`."""
    return search(program, None, 100).point.z


def _attempt(task: Task, quick: Tensor, max_steps: int) -> Point:
    """Solves programs by the way that eliminates most, and those that resist or do not go that way by `general`."""
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
    """Solves programs that are definite, and has them judged as stated."""
    start, whole = task.start, task.near is task.stated
    start = Start.of(task.near, task.cholesky, task.guess, max_steps) if start is None else start
    point = start.finished(max_steps)
    if not (point.sure and whole):
        point.residual, solved = judge(task.stated, point.z, point.y, point.residual if whole else None)
        point.optimal, point.sure = point.optimal & solved, False
    return point
