"""Infeasible programs with the bounds moved as little as possible."""

from __future__ import annotations

from dataclasses import replace

import torch

from torchimplicit.core import transforms
from torchimplicit.optim.quadprog.certificate import proves, weights
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.search import solutions

_RANK = 1e-9


def nearest_feasible(program: Program) -> Program:
    r"""Moves the bounds of infeasible programs to the nearest ones that can be met, in the sense of least squares.

    The rows $V$ that are violated at the least-squares point become equations $R_V z = P b_V$, with $P$ the projection
    onto the range of $R_V$: differentiable in rows and bounds while the set $V$ stays the same.

    Raises:
        NotImplementedError: inside `torch.func` transforms, where the violated rows cannot be looked at.
    """
    if transforms.active():
        raise NotImplementedError(
            "closest_feasible=True does not work under torch.func transforms (vmap, jacrev, ...); try "
            "torch.autograd.grad, or give programs that are feasible"
        )
    plain = program.mapped(torch.detach)
    t = weights(plain, solutions)  # the least violation is the shortest proof that there is one
    index = torch.nonzero(proves(plain, t)).flatten()
    if not len(index):
        return program
    part, t = program.take(index), t[index]
    violated = t != 0
    rows = part.rows * violated.unsqueeze(2)
    bound = torch.where(t > 0, part.upper, torch.where(t < 0, part.lower, 0.0))
    reached = (rows @ (torch.linalg.pinv(rows, rtol=_RANK) @ bound.unsqueeze(2))).squeeze(2)
    lower = program.lower.index_copy(0, index, torch.where(violated, reached, part.lower))
    upper = program.upper.index_copy(0, index, torch.where(violated, reached, part.upper))
    return replace(program, lower=lower, upper=upper)


def uncrossed(program: Program) -> Program:
    """Moves bounds that cross to their mean, the nearest pair that does not."""
    crossed, middle = program.lower > program.upper, (program.lower + program.upper) / 2
    lower, upper = (torch.where(crossed, middle, bound) for bound in (program.lower, program.upper))
    return replace(program, lower=lower, upper=upper)
