"""Sparse quadratic programs: solved and differentiated by `qp`, against Clarabel's solve alone, of the same program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import clarabel
import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from benchmarks.kit.measure import interleaved
from benchmarks.kit.table import Table, at_most
from torchimplicit import qp
from torchimplicit.optim import Clarabel

BAR = 3.0  # times Clarabel's own solve, forward and backward together
INFINITY = torch.inf
DOUBLE = torch.float64


class SparseProgram(NamedTuple):
    """Minimise `z'Qz / 2 + q'z` with `A z = b`, `G z <= h` and `l <= z <= u`; matrices in COO form."""

    Q: Tensor
    q: Tensor
    A: Tensor | None
    b: Tensor | None
    G: Tensor | None
    h: Tensor | None
    l: Tensor  # noqa: E741
    u: Tensor


def banded(n: int) -> SparseProgram:
    """Nine entries in a row of Q, as many rows of G as unknowns with ten entries each near the diagonal, a box."""
    random = torch.Generator().manual_seed(0)
    place = torch.arange(n)
    index, values = [torch.stack((place, place))], [torch.full((n,), 2.5, dtype=DOUBLE)]
    for offset in range(1, 5):
        entries = 0.2 * torch.randn(n - offset, generator=random, dtype=DOUBLE)
        pair = torch.stack((place[:-offset], place[offset:]))
        index, values = [*index, pair, pair.flip(0)], [*values, entries, entries]
    Q = _matrix(torch.cat(index, 1), torch.cat(values), n, n)
    near = torch.randint(0, n, (n, 1), generator=random) + torch.randint(-15, 16, (n, 10), generator=random)
    where = torch.stack((place.repeat_interleave(10), near.clamp(0, n - 1).flatten()))
    G = _matrix(where, torch.randn(10 * n, generator=random, dtype=DOUBLE), n, n)
    inside, room = torch.randn(n, generator=random, dtype=DOUBLE), torch.rand(n, generator=random, dtype=DOUBLE)
    q, high = torch.randn(n, generator=random, dtype=DOUBLE), torch.full((n,), 3.0, dtype=DOUBLE)
    return SparseProgram(Q, q, None, None, G, G @ inside.clamp(-3, 3) + 0.1 * room, -high, high)


def transport(n: int) -> SparseProgram:
    """The projection of a matrix of n entries onto those of which all rows and columns add up to one."""
    side = int(n**0.5)
    n, place = side * side, torch.arange(side * side)
    ones = torch.ones(n, dtype=DOUBLE)
    sums = torch.cat((torch.stack((place // side, place)), torch.stack((side + place % side, place))), 1)
    A = _matrix(sums, torch.ones(2 * n, dtype=DOUBLE), 2 * side, n)
    q = -torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    Q = _matrix(torch.stack((place, place)), ones, n, n)
    return SparseProgram(Q, q, A, torch.ones(2 * side, dtype=DOUBLE), None, None, 0 * ones, INFINITY * ones)


def sparse(n: int, seconds: float) -> Table:
    """Time and accuracy, side by side."""
    note = (
        f"{n} unknowns, one program, everything requires grad. Times of `qp` are forward and backward together, those "
        "of Clarabel are its solve alone, from matrices in its own format. Residual: see `qp`. Clarabel's error: of "
        "the solution, relative to the largest entry; ours is what the bounds that are met determine, to rounding."
    )
    header = ["program", "qp, ms", "Clarabel, ms", "ratio", "bar", "verdict", "residual", "Clarabel's error"]
    table = Table("Quadratic programs: sparse", note, header)
    for name, make in (("banded, boxed", banded), ("transport polytope", transport)):
        program = make(n)
        given = {key: x.requires_grad_() for key, x in program._asdict().items() if x is not None}
        ask = _clarabel(program)
        solution, theirs = qp(**given, solver=Clarabel()), torch.tensor(ask().x, dtype=DOUBLE)
        value = solution.value.detach()
        error = float((theirs - value).abs().max() / value.abs().max())
        ours = lambda given=given: (qp(**given, solver=Clarabel()).value ** 2).sum().backward()  # noqa: E731
        times = interleaved({"ours": ours, "theirs": ask}, seconds, clock=time.process_time)
        ratio = times["ours"] / times["theirs"]
        cells = f"{times['ours']:.0f}", f"{times['theirs']:.0f}", f"{ratio:.2f}"
        table.add(name, *cells, *at_most(ratio, BAR), f"{float(solution.residual.max()):.0e}", f"{error:.0e}")
    return table


def _clarabel(program: SparseProgram) -> Callable[[], Any]:
    """Clarabel's solve of a program, as it comes."""
    Q, q, A, b, G, h, l, u = program  # noqa: E741
    n, blocks, bounds, cones = len(q), [], [], []
    if A is not None and b is not None:
        blocks, bounds, cones = [_csc(A)], [b.detach().numpy()], [clarabel.ZeroConeT(len(b))]
    rows, high = [-scipy.sparse.eye(n)], [-l.detach().numpy()]
    if G is not None and h is not None:
        rows, high = [*rows, _csc(G)], [*high, h.detach().numpy()]
    if bool(u.isfinite().all()):
        rows, high = [*rows, scipy.sparse.eye(n)], [*high, u.detach().numpy()]
    cones.append(clarabel.NonnegativeConeT(sum(map(len, high))))
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    upper = scipy.sparse.triu(_csc(Q)).tocsc()
    matrix, right = scipy.sparse.vstack(blocks + rows).tocsc(), np.concatenate(bounds + high)
    costs = q.detach().numpy()
    return lambda: clarabel.DefaultSolver(upper, costs, matrix, right, cones, settings).solve()


def _csc(matrix: Tensor) -> Any:
    matrix = matrix.detach()
    return scipy.sparse.csc_matrix((matrix.values().numpy(), matrix.indices().numpy()), shape=tuple(matrix.shape))


def _matrix(index: Tensor, values: Tensor, *shape: int) -> Tensor:
    return torch.sparse_coo_tensor(index, values, shape, check_invariants=True).coalesce()
