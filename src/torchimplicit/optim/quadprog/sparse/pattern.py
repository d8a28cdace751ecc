"""From the tensors that a user gives to `SparseMatrix`, so that gradients come back on the users' patterns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.optim.quadprog.solver import stays_sparse
from torchimplicit.optim.quadprog.sparse_matrix import SparseMatrix

_MATRICES = (0, 2, 4, 6)  # of what the public function takes


def as_solved(tensors: tuple[Any, ...], solver: Any, **options: Any) -> tuple[Any, ...]:
    """The tensors of a program, sparse matrices made dense where a dense method is to solve it.

    Args:
        tensors: what `qp` takes, in its order.
        solver: of `qp`.
        options: of `qp`, which sparse programs do not know.

    Raises:
        NotImplementedError: an option, or a transform, that sparse programs do not know.
        ValueError: a layout that has no gradient.
    """
    matrices = {name: tensors[at] for name, at in zip("QGAC", _MATRICES, strict=True)}
    if not any(map(is_sparse, matrices.values())):
        return tensors
    check_layouts(**matrices)
    if not stays_sparse(solver, tensors[1]):
        return tuple(x.to_dense() if is_sparse(x) else x for x in tensors)
    used = [f"{name}={value!r}" for name, value in options.items() if value] + ["torch.func"] * transforms.active()
    if used:
        raise NotImplementedError(
            f"qp: got {used[0]} for a program that stays sparse, expected none; try solver=ti.optim.InteriorPoint(), "
            "which makes it dense"
        )
    return tensors


def is_sparse(matrix: Tensor | None) -> bool:
    """Whether a matrix has a sparse layout."""
    return isinstance(matrix, Tensor) and matrix.layout != torch.strided


def check_layouts(**matrices: Tensor | None) -> None:
    """Refuses layouts whose gradients torch itself cannot accumulate, and sparse batches.

    Raises:
        ValueError: names what to try.
    """
    for name, matrix in matrices.items():
        if matrix is None or not is_sparse(matrix):
            continue
        if matrix.layout not in (torch.sparse_coo, torch.sparse_csr):
            raise ValueError(
                f"qp({name}=...): got the layout {matrix.layout}, expected torch.sparse_coo, torch.sparse_csr or a "
                f"dense tensor; try {name}.to_sparse_coo()"
            )
        if matrix.dim() != 2 or matrix.dense_dim():
            raise ValueError(
                f"qp({name}=...): got a sparse tensor of shape {tuple(matrix.shape)}, expected one matrix (rows, n) "
                f"that all programs share; try {name}.to_dense(), or a call for every program"
            )


def sparse_matrices(given: dict[str, Tensor | None], blocks: list[str], q: Tensor) -> tuple[SparseMatrix, SparseMatrix]:
    """`Q`, and the named matrices one below the other; the identity for those that are not given.

    Raises:
        ValueError: a dense one has a batch dimension.
    """
    n, device = q.shape[-1], q.device
    none = torch.zeros(0, dtype=torch.int64, device=device)
    nothing = SparseMatrix(torch.zeros(0, dtype=torch.float64, device=device), none, none, (n, n))
    Q = nothing if (matrix := given["Q"]) is None else _entries("Q", matrix)
    own = torch.arange(n, device=device)
    identity = SparseMatrix(torch.ones(n, dtype=torch.float64, device=device), own, own, (n, n))
    values, row, column, count = [nothing.values], [none], [none], 0
    for name in blocks:
        matrix = given[name]
        part = identity if matrix is None else _entries(name, matrix)
        values.append(part.values)
        row.append(part.row + count)
        column.append(part.column)
        count += part.size[0]
    return Q, SparseMatrix(torch.cat(values), torch.cat(row), torch.cat(column), (count, n))


def _entries(name: str, matrix: Tensor) -> SparseMatrix:
    size = (matrix.shape[-2], matrix.shape[-1])
    if is_sparse(matrix):  # CSR by way of COO, whose entries torch differentiates more than once
        matrix = matrix.to_sparse_coo().coalesce()
        (row, column), values = matrix.indices(), matrix.values()
    else:
        if matrix.dim() == 3 and len(matrix) == 1:
            matrix = matrix.squeeze(0)
        if matrix.dim() == 3:
            raise ValueError(
                f"qp({name}=...): got a batch {tuple(matrix.shape)} of matrices beside sparse ones, which all programs "
                f"share, expected {size}; try a call for every program, or all matrices dense"
            )
        # A zero that may change has a derivative like any other entry.
        where = torch.ones_like(matrix, dtype=torch.bool) if matrix.requires_grad else matrix != 0
        row, column = where.nonzero(as_tuple=True)
        values = matrix[row, column]
    return SparseMatrix(values.to(torch.float64), row, column, size)
