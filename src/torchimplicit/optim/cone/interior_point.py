"""Cone programs handed to Clarabel, a maintained interior-point solver, one at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.status import Status
from torchimplicit.optim.clarabel import STATUS, import_clarabel
from torchimplicit.optim.cone.cones import Cones


class Found(NamedTuple):
    """Where Clarabel ended: solution `(n,)`, slack less multiplier `(m,)`, its status, its iterations."""

    x: Tensor
    v: Tensor
    status: Status
    steps: int


def solve_one(P: Tensor | None, q: Tensor, A: Tensor, b: Tensor, cones: Cones, max_steps: int) -> Found:
    """Solves one program of finite float64 tensors on the CPU; see `cone_program`."""
    clarabel = import_clarabel("cone programs")
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_iter, settings.max_threads = False, max_steps, 1
    quadratic = torch.zeros_like(q).diag() if P is None else P.triu()
    sparse = (_sparse(quadratic), q.tolist(), _sparse(A), b.tolist())
    solution = clarabel.DefaultSolver(*sparse, _named(clarabel, cones), settings).solve()
    status = STATUS.get(str(solution.status), Status.STAGNATED)
    x, s, y = (torch.tensor(part, dtype=q.dtype, device="cpu") for part in (solution.x, solution.s, solution.z))
    return Found(x, s - y, status, int(solution.iterations))


def _named(clarabel: Any, cones: Cones) -> list[Any]:
    named = [clarabel.ZeroConeT(cones.zero)] if cones.zero else []
    named += [clarabel.NonnegativeConeT(cones.nonneg)] if cones.nonneg else []
    named += [clarabel.SecondOrderConeT(width) for width in cones.soc]
    named += [clarabel.PSDTriangleConeT(order) for order in cones.psd]
    named += [clarabel.ExponentialConeT() for _ in range(cones.exp)]
    three = (clarabel.PowerConeT(alpha[0]) if len(alpha) == 2 else None for alpha in cones.power)
    named += [cone or clarabel.GenPowerConeT(list(alpha), 1) for cone, alpha in zip(three, cones.power, strict=True)]
    return named


def _sparse(matrix: Tensor) -> SimpleNamespace:
    """A matrix by its columns' nonzero entries, under the names that Clarabel reads (those of scipy)."""
    columns, rows = matrix.T.nonzero(as_tuple=True)
    counts = torch.bincount(columns, minlength=matrix.shape[1]).cumsum(0)
    return SimpleNamespace(
        data=matrix[rows, columns].tolist(),
        indices=rows.tolist(),
        indptr=[0, *counts.tolist()],
        shape=tuple(matrix.shape),
        has_sorted_indices=True,
        has_canonical_format=True,
    )
