"""From the matrices that a user gives to one batch of programs, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.program import Program
from torchimplicit.optim.quadprog.report import Duals
from torchimplicit.optim.quadprog.sparse.pattern import sparse_matrices
from torchimplicit.optim.quadprog.sparse_matrix import SparseMatrix

_SYMMETRIC = 1e4  # roundings


@dataclass(frozen=True)
class Form:
    """How a program was given.

    Attributes:
        batched: whether anything had a batch dimension.
        dtype: of the answer.
        sizes: how many rows are equations, inequalities, rows between bounds.
    """

    batched: bool
    dtype: torch.dtype
    sizes: tuple[int, int, int]

    def duals(self, rows: Tensor) -> Duals:
        """Values of all rows `(B, r)` by kind."""
        equality, inequality, bounds = rows.split(self.sizes, dim=1)
        return Duals(self.out(inequality), self.out(equality), self.out(bounds))

    def rows(self, duals: Duals) -> Tensor:
        """The inverse of `duals`."""
        parts = [part if part.dim() == 2 else part.unsqueeze(0) for part in (duals[1], duals[0], duals[2])]
        return torch.cat(parts, 1)

    def out(self, rows: Tensor) -> Tensor:
        """An answer `(B, k)` in the caller's dtype and batching."""
        rows = rows.to(self.dtype) if rows.is_floating_point() else rows
        return rows if self.batched else rows.squeeze(0)


def assemble(
    Q: Tensor | None, q: Tensor, G: Tensor | None, h: Tensor | None, A: Tensor | None, b: Tensor | None,
    C: Tensor | None, l: Tensor | None, u: Tensor | None,  # noqa: E741
) -> tuple[Program, Form]:  # fmt: skip
    """One form of all that `qp` takes: rows of equations, inequalities and rows between bounds, in float64.

    Raises:
        TypeError: something is no floating tensor.
        ValueError: a shape does not fit, or one of a pair is missing.
    """
    given = {"Q": Q, "q": q, "G": G, "h": h, "A": A, "b": b, "C": C, "l": l, "u": u}
    _check_types(given)
    n, batch, batched = q.shape[-1], *_batch(given)
    _check_pairs(given)
    tensors = [value for value in given.values() if value is not None]
    dtype = tensors[0].dtype
    for value in tensors[1:]:
        dtype = torch.promote_types(dtype, value.dtype)
    wide = {"dtype": torch.float64, "device": q.device}

    def expanded(value: Tensor, *shape: int) -> Tensor:
        return value.to(torch.float64).expand(batch, *shape)

    _check_shapes(given, n)
    blocks, lower, upper, sizes = [], [], [], []
    for matrix, low, high in (("A", "b", "b"), ("G", None, "h"), ("C", "l", "u")):
        lows, highs = None if low is None else given[low], given[high]
        bound = lows if highs is None else highs
        count = 0 if bound is None else bound.shape[-1]
        sizes.append(count)
        if not count:
            continue
        blocks.append(matrix)
        none = torch.full((batch, count), torch.inf, **wide)
        lower.append(-none if lows is None else expanded(lows, count))
        upper.append(none if highs is None else expanded(highs, count))
    empty = torch.zeros(batch, 0, **wide)
    below, above = (torch.cat(x, 1) if x else empty for x in (lower, upper))
    if any(value.layout != torch.strided for value in tensors):
        curvature, R = sparse_matrices(given, blocks, q)
    else:
        eye = torch.eye(n, **wide).expand(batch, n, n) if "C" in blocks and C is None else empty
        rows = [eye if (block := given[name]) is None else expanded(block, *block.shape[-2:]) for name in blocks]
        curvature = torch.zeros(batch, n, n, **wide) if Q is None else expanded(Q, n, n)
        R = torch.cat(rows, 1) if rows else torch.zeros(batch, 0, n, **wide)
    program = Program(curvature, expanded(q, n), R, below, above, equalities=sizes[0])  # type: ignore[arg-type]
    return program, Form(batched, dtype, (sizes[0], sizes[1], sizes[2]))


def _check_types(given: dict[str, Tensor | None]) -> None:
    if given["q"] is None:
        raise TypeError("qp(q=None): expected a tensor (B, n); for a pure projection give q = -point and Q = I")
    for name, value in given.items():
        if value is not None and not (isinstance(value, Tensor) and value.is_floating_point()):
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"qp({name}=...): got {got}, expected a floating tensor; try torch.as_tensor(...).double()")
    devices = {value.device for value in given.values() if value is not None}
    if len(devices) > 1:
        raise ValueError(f"qp: got tensors on {sorted(map(str, devices))}, expected one device; try .to(q.device)")


def _check_pairs(given: dict[str, Tensor | None]) -> None:
    for matrix, vector, relation in (("G", "h", "G z <= h"), ("A", "b", "A z = b")):
        if (given[matrix] is None) != (given[vector] is None):
            got, missing = (matrix, vector) if given[vector] is None else (vector, matrix)
            raise ValueError(f"qp: got {got} without {missing}, expected both for {relation}")
    if given["C"] is not None and given["l"] is None and given["u"] is None:
        raise ValueError("qp: got C without l and u, expected one of them or both for l <= C z <= u")


_DIMENSIONS = {"Q": 2, "G": 2, "A": 2, "C": 2}


def _batch(given: dict[str, Tensor | None]) -> tuple[int, bool]:
    """The common batch size, and whether there is one."""
    sizes = {}
    for name, value in given.items():
        own = _DIMENSIONS.get(name, 1)
        if value is None:
            continue
        if value.dim() not in (own, own + 1):
            shape = (
                "(B, n, n)" if name == "Q" else "(B, rows, n)" if own == 2 else "(B, n)" if name == "q" else "(B, rows)"
            )
            raise ValueError(f"qp({name}=...): got shape {tuple(value.shape)}, expected {shape} or that without B")
        if value.dim() == own + 1:
            sizes[name] = value.shape[0]
    found = set(sizes.values()) - {1}
    if len(found) > 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"qp: got batch sizes {listed}, expected one, or tensors without a batch for all programs")
    return (found.pop() if found else 1), bool(sizes)


def _check_shapes(given: dict[str, Tensor | None], n: int) -> None:
    if not n:
        raise ValueError("qp(q=...): got no unknowns, expected n >= 1")
    shapes = {
        name: tuple(value.shape[-_DIMENSIONS.get(name, 1) :]) for name, value in given.items() if value is not None
    }
    wanted = {"Q": (n, n)}
    for matrix, vectors in (("G", ("h",)), ("A", ("b",)), ("C", ("l", "u"))):
        counts = [shapes[name][0] for name in vectors if name in shapes]
        rows = shapes[matrix][0] if matrix in shapes else n
        if matrix in shapes or counts:
            wanted |= {matrix: (rows, n)} | dict.fromkeys(vectors, (rows,))
    for name, shape in shapes.items():
        if name != "q" and shape != wanted[name]:
            hint = f" (bounds on z itself, for q has n = {n})" if name in "lu" and "C" not in shapes else ""
            got, expected = (", ".join(map(str, one)) for one in (shape, wanted[name]))
            raise ValueError(
                f"qp({name}=...): got shape (..., {got}), expected (..., {expected}) to fit q and its constraint{hint}"
            )


def quarantined(program: Program, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor] | None, Program]:
    """Looks at what programs hold.

    Args:
        program: as given.
        dtype: that it was given in.

    Returns:
        Which programs hold what is no number `(B,)`, and which have bounds that cross, `(B,)`, or None if all are well;
        and the programs, with placeholders for those.

    Raises:
        ValueError: a `Q` is not symmetric.
    """
    with torch.no_grad():
        invalid = _invalid(program)
    program = program if invalid is None else _with_placeholders(program, invalid[0] | invalid[1])
    with torch.no_grad():
        _check_symmetric(program.Q, dtype)
    return invalid, program


def _invalid(program: Program) -> tuple[Tensor, Tensor] | None:
    """See `quarantined`."""
    # A sum is finite if all its terms are, in one pass; equal infinities differ by what is no number.
    total = program.Q.sum((1, 2)) + program.q.sum(1) + program.rows.sum((1, 2))
    numbers, apart = total - total == 0, (program.upper - program.lower >= 0).all(1)
    if bool((numbers & apart).all()):
        return None
    numbers = numbers & ~(program.lower.isnan() | program.upper.isnan()).any(1)
    return ~numbers, numbers & ~apart


def _with_placeholders(program: Program, invalid: Tensor) -> Program:
    """The programs with trivial ones in place of the invalid ones: keeps NaN out of the gradients of shared tensors."""
    row, matrix = invalid.unsqueeze(1), invalid[:, None, None]
    infinity = torch.full_like(program.lower, torch.inf)
    infinity[:, : program.equalities] = 0.0
    if program.is_sparse:  # the matrices are those of the others, too
        Q, rows = (x.if_finite() for x in program.sparse)
    else:
        one = torch.eye(program.q.shape[1], dtype=program.q.dtype, device=program.q.device)
        Q, rows = torch.where(matrix, one, program.Q), torch.where(matrix, 0.0, program.rows)
    lower, upper = torch.where(row, -infinity, program.lower), torch.where(row, infinity, program.upper)
    return replace(program, Q=Q, q=torch.where(row, 0.0, program.q), rows=rows, lower=lower, upper=upper)


def _check_symmetric(Q: Tensor | SparseMatrix, dtype: torch.dtype) -> None:
    """Refuses what rounding cannot explain."""
    if isinstance(Q, Tensor) and torch.equal(Q, Q.mT):
        return
    skew = Q.skew() if isinstance(Q, SparseMatrix) else (Q - Q.mT).abs().amax((1, 2))
    wrong = skew > _SYMMETRIC * torch.finfo(dtype).eps * Q.abs().amax((1, 2))
    if bool(wrong.any()):
        samples = torch.nonzero(wrong).flatten().tolist()[:5]
        raise ValueError(
            f"qp(Q=...): got a Q that is not symmetric for programs {samples}, expected Q = Q.mT; try (Q + Q.mT) / 2, "
            "which has the same objective"
        )
