"""Programs handed to Clarabel, a maintained interior-point solver for sparse ones, one at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.optim.clarabel import STATUS, import_clarabel
from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.sparse.factor import OTHERWISE, import_scipy
from torchimplicit.optim.quadprog.sparse_matrix import SparseMatrix


class Claim(NamedTuple):
    """Where Clarabel ended, and what it says of it.

    Attributes:
        z: solution, or the direction along which the objective falls, `(1, n)`.
        y: multipliers, or the weights with which the rows contradict, `(1, r)`.
        status: what it calls this.
        steps: its iterations.
    """

    z: Tensor
    y: Tensor
    status: Status
    steps: int


def interior_point(program: Program, max_steps: int, tol: float = 1e-8) -> Claim:
    """Clarabel's answer for one sparse program.

    Args:
        program: finite but for missing bounds.
        max_steps: iterations.
        tol: of the answer.
    """
    clarabel = import_clarabel("qp: sparse programs", OTHERWISE)
    lower, upper = program.lower[0], program.upper[0]
    equal = lower == upper
    groups = [torch.nonzero(x).flatten() for x in (equal, ~equal & upper.isfinite(), ~equal & lower.isfinite())]
    signs = (1.0, 1.0, -1.0)
    bounds = [sign * bound[at] for sign, bound, at in zip(signs, (upper, upper, lower), groups, strict=True)]
    Q, R = program.sparse
    half = Q.row <= Q.column
    P = _csc(Q.values[half], Q.row[half], Q.column[half], Q.size)
    counts = [len(at) for at in groups]
    A = _stacked(R, groups, signs, sum(counts))
    cones = [clarabel.ZeroConeT(counts[0])] if counts[0] else []
    cones += [clarabel.NonnegativeConeT(counts[1] + counts[2])] if counts[1] + counts[2] else []
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_iter, settings.max_threads = False, max_steps, 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tol
    right = torch.cat(bounds).numpy()
    solution = clarabel.DefaultSolver(P, program.q[0].numpy(), A, right, cones, settings).solve()
    found = torch.tensor(solution.z, dtype=torch.float64, device="cpu").split(counts)
    y = torch.zeros_like(lower)
    for sign, at, part in zip(signs, groups, found, strict=True):
        y[at] += sign * part
    z = torch.tensor(solution.x, dtype=torch.float64, device="cpu").unsqueeze(0)
    status = STATUS.get(str(solution.status), Status.STAGNATED)
    return Claim(torch.nan_to_num(z), torch.nan_to_num(y).unsqueeze(0), status, int(solution.iterations))


def _stacked(R: SparseMatrix, groups: list[Tensor], signs: tuple[float, ...], count: int) -> Any:
    """Rows of a matrix below each other, some of them with a minus."""
    values, row, column, begin = [], [], [], 0
    for at, sign in zip(groups, signs, strict=True):
        place = torch.full((R.size[0],), -1, dtype=torch.int64, device="cpu").index_copy(
            0, at, torch.arange(len(at), device="cpu") + begin
        )
        kept = place[R.row] >= 0
        values.append(sign * R.values[kept])
        row.append(place[R.row[kept]])
        column.append(R.column[kept])
        begin += len(at)
    return _csc(torch.cat(values), torch.cat(row), torch.cat(column), (count, R.size[1]))


def _csc(values: Tensor, row: Tensor, column: Tensor, size: tuple[int, int]) -> Any:
    return import_scipy().csc_matrix((values.numpy(), (row.numpy(), column.numpy())), shape=size)
