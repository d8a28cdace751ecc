"""Proofs that sparse programs have no solution: what Clarabel claims, projected to where it is exact, and checked.

Where Clarabel claims nothing of the kind, or what cannot be checked, it is asked for the proofs as solutions of other
programs, see `certificate`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.optim.quadprog.certificate import falls, feasible, proves
from torchimplicit.optim.quadprog.program import Program, largest, times
from torchimplicit.optim.quadprog.sparse.factor import Factor
from torchimplicit.optim.quadprog.sparse.interior_point import Claim, interior_point
from torchimplicit.optim.quadprog.sparse_matrix import SparseMatrix

_NOTHING = 1e-6  # of the largest: what Clarabel's claims are off by

_ROUNDING = 1e-13  # of the largest: what is zero but for rounding


def prove(program: Program, claim: Claim, z: Tensor, max_steps: int) -> tuple[Status, Tensor, Tensor]:
    """Why a program has no solution; `MAX_STEPS` where nothing is proved.

    Args:
        program: one program, in units in which all is about one.
        claim: what Clarabel says of it.
        z: a point; where it meets all bounds nothing is proved against it, `(1, n)`.
        max_steps: of Clarabel.

    Returns:
        The status, weights that contradict, `(1, r)`, and a ray, `(1, n)`; zero where they do not prove anything.
    """
    no_weights, no_ray = torch.zeros_like(program.lower), torch.zeros_like(program.q)
    missed = not bool(feasible(program, z))
    for ask_again in (False, True):
        if missed and (ask_again or claim.status == Status.INFEASIBLE):
            y = interior_point(_violations(program), max_steps).y if ask_again else claim.y
            weights = contradiction(program, y)
            if bool((weights != 0).any()):
                return Status.INFEASIBLE, weights, no_ray
        if ask_again or claim.status == Status.UNBOUNDED:
            d = interior_point(_directions(program), max_steps).z if ask_again else claim.z
            direction = ray(program, d)
            if bool((direction != 0).any()):
                return Status.UNBOUNDED, no_weights, direction
    return Status.MAX_STEPS, no_weights, no_ray


def contradiction(program: Program, y: Tensor) -> Tensor:
    """Weights of the rows near `y` that prove that no point meets all bounds, `(1, r)`; zero where they do not.

    Args:
        program: one program, in units in which all is about one.
        y: what is claimed to prove it, `(1, r)`.
    """
    _, R = program.sparse
    bound = torch.where(y > 0, program.upper, program.lower)
    y = torch.where(bound.isfinite() & (y.abs() > _NOTHING * largest(y).unsqueeze(1)), y, 0.0)
    on = (y != 0).squeeze(0)
    kept = on[R.row]
    number = on.cumsum(0) - 1
    transposed = SparseMatrix(R.values[kept], R.column[kept], number[R.row[kept]], (R.size[1], int(on.sum())))
    found = torch.zeros_like(y)
    found[0, on] = _onto_kernel(transposed, y[0, on])
    found = torch.where((found * y > 0) | (program.lower == program.upper), found, 0.0)
    return torch.where(proves(program, found).unsqueeze(1), found, 0.0)


def ray(program: Program, d: Tensor) -> Tensor:
    """A direction near `d` along which the objective falls for ever and no bound is met, `(1, n)`; zero if it is none.

    Args:
        program: one program, in units in which all is about one.
        d: what is claimed to be one, `(1, n)`.
    """
    Q, R = program.sparse
    d = d / largest(d).clamp_min(torch.finfo(d.dtype).tiny).unsqueeze(1)
    moved = times(R, d).abs() > _NOTHING * program.length
    bounded = (program.upper.isfinite() | program.lower.isfinite()).squeeze(0)
    still = bounded & ~moved.squeeze(0)
    kept, number = still[R.row], still.cumsum(0) - 1 + Q.size[0]
    held = SparseMatrix(
        torch.cat((Q.values, R.values[kept])), torch.cat((Q.row, number[R.row[kept]])),
        torch.cat((Q.column, R.column[kept])), (Q.size[0] + int(still.sum()), Q.size[1]),
    )  # fmt: skip
    found = _onto_kernel(held, d.squeeze(0)).unsqueeze(0)
    return torch.where(falls(program, found).unsqueeze(1), found, 0.0)


def _violations(program: Program) -> Program:
    """The least violation of all bounds, in the sense of least squares, whose multipliers contradict."""
    _, R = program.sparse
    r, n = R.size
    own = torch.arange(r, device="cpu")
    one = torch.ones(r, dtype=torch.float64, device="cpu")
    rows = SparseMatrix(torch.cat((R.values, one)), torch.cat((R.row, own)), torch.cat((R.column, n + own)), (r, n + r))
    Q = SparseMatrix(one, n + own, n + own, (n + r, n + r))
    q = torch.zeros(1, n + r, dtype=torch.float64, device="cpu")
    return replace(program, Q=Q, q=q, rows=rows)


def _directions(program: Program) -> Program:
    """The direction nearest to the steepest descent that nothing bends and no bound stops."""
    Q, R = program.sparse
    n = Q.size[1]
    own, far = torch.arange(n, device="cpu"), torch.full_like(program.lower, torch.inf)
    rows = SparseMatrix(
        torch.cat((Q.values, R.values)), torch.cat((Q.row, n + R.row)), torch.cat((Q.column, R.column)),
        (n + R.size[0], n),
    )  # fmt: skip
    eye, zero = (
        SparseMatrix(torch.ones(n, dtype=torch.float64, device="cpu"), own, own, (n, n)),
        torch.zeros_like(program.q),
    )
    lower = torch.cat((zero, torch.where(program.lower.isfinite(), 0.0, -far)), 1)
    upper = torch.cat((zero, torch.where(program.upper.isfinite(), 0.0, far)), 1)
    down = program.q / largest(program.q).clamp_min(torch.finfo(zero.dtype).tiny)
    return replace(program, Q=eye, q=down, rows=rows, lower=lower, upper=upper, equalities=n)


def _onto_kernel(M: SparseMatrix, point: Tensor) -> Tensor:
    """The nearest point that a matrix takes to zero, `(n,)`."""
    r, n = M.size
    size = M.abs().amax(2)
    M = M / torch.where(size > 0, size, 1.0).unsqueeze(2)  # beside large rows, small ones would hold back little
    own = torch.arange(n, device="cpu")
    values = torch.cat((torch.ones(n, dtype=point.dtype, device="cpu"), M.values, M.values))
    row, column = torch.cat((own, n + M.row, M.column)), torch.cat((own, M.column, n + M.row))
    found, _ = Factor(values, row, column, n, r).solve(torch.cat((point, point.new_zeros(r))))
    found = found[:n]
    return torch.where(found.abs() > _ROUNDING * found.abs().amax(), found, 0.0) if n else found
