r"""Projections onto matrices of given row and column sums, by Newton's method on their multipliers.

The projection is $Y = \max(X + u 1^\top + 1 v^\top, 0)$ for the $u$, $v$ with the right sums, and by how much these are
off is the whole error. They minimise $|Y|^2 / 2 - r^\top u - c^\top v$, convex and piecewise quadratic, whose Hessian
is the signless Laplacian of a bipartite graph, the support: $m + n$ unknowns in place of $m n$.

Source: X. Li, D. Sun, K.-C. Toh, On the efficient computation of a generalized Jacobian of the projector over the
Birkhoff polytope, Mathematical Programming 179 (2020) 419, for the method and the derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.optim.projection.batch import Batch, Label
from torchimplicit.optim.projection.simplex import onto_simplex

_STEPS = 200  # of Newton's method; with at most _HALVINGS of each
_HALVINGS = 40
_DESCENT = 1e-4  # the part of the predicted fall that a step must reach
_DAMPING = 1e-3  # of the Hessian, times the error that is left
_RANK = 1e-11  # eigenvalues of Laplacians below this part of the largest are zero


@public
def transport_polytope(X: Tensor, rows: Tensor, columns: Tensor, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest matrix of $\{Y \ge 0,\ Y 1 = r,\ Y^\top 1 = c\}$, exactly: a plan of transport.

    The derivative is that of the projection onto the equations over the support; an entry that is zero without being
    pushed there counts as outside of it. By the sums it is that among sums of equal totals. Entries of `-inf` are
    forbidden: zero, and without a gradient. Takes some 10 linear systems in
    $m + n$ unknowns, in float64, and up to 80 where entries are far larger than the sums.

    Args:
        X: matrices `(..., m, n)`.
        rows: the sums of the rows, $r \ge 0$, `(m,)` or `(..., m)`.
        columns: the sums of the columns, $c \ge 0$, `(n,)` or `(..., n)`, of the same total.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The projections, as `X`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: sums are negative or have different totals, no matrix has them and is zero where that is asked for,
            or shapes do not fit.
        TypeError: `X` is not a real floating tensor.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import projection
        >>> X = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        >>> projection.transport_polytope(
        ...     X, torch.tensor([0.5, 0.5]), torch.tensor([0.3, 0.7])
        ... )
        tensor([[[0.3000, 0.2000],
                 [0.0000, 0.5000]]])
    """
    batch = Batch("transport_polytope", X, event=2, masks="some", on_failure=on_failure)
    sums = []
    for name, value, axis in (("rows", rows, -2), ("columns", columns, -1)):
        tensor = batch.healthy(batch.entry(name, value, (*batch.shape, X.shape[axis])), 1, 1.0)
        batch.refuse((tensor.detach() < 0).any(-1), f"{name} >= 0")
        sums.append(tensor.expand(*batch.shape, X.shape[axis]))
    first, second = (tensor.detach().sum(-1) for tensor in sums)
    apart = (first - second).abs() > 8 * torch.finfo(first.dtype).eps * max(X.shape[-2:]) * first
    batch.refuse(apart, "rows and columns of the same total", rows=first, columns=second)
    return _projected(batch, *sums)


@public
def birkhoff_polytope(X: Tensor, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest doubly stochastic matrix, $\{Y \ge 0,\ Y 1 = 1,\ Y^\top 1 = 1\}$, exactly: a relaxed permutation.

    See `transport_polytope` for the method and for what holds on the boundary.

    Args:
        X: matrices `(..., n, n)`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The projections, as `X`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: the matrices are not square, or the entries of `-inf` leave no doubly stochastic one.
        TypeError: `X` is not a real floating tensor.

    Examples:
        >>> import torch
        >>> from torchimplicit.optim import projection
        >>> projection.birkhoff_polytope(torch.tensor([[[1.0, 0.5], [0.0, 0.0]]]))
        tensor([[[0.6250, 0.3750],
                 [0.3750, 0.6250]]])
    """
    batch = Batch("birkhoff_polytope", X, event=2, masks="some", on_failure=on_failure)
    if X.shape[-1] != X.shape[-2]:
        raise ValueError(f"birkhoff_polytope: got matrices of shape {tuple(X.shape)}, expected (..., n, n)")
    ones = torch.ones_like(batch.x.detach()[..., 0])
    return _projected(batch, ones, ones)


def _projected(batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
    found: Any = Label.apply(_found, batch.x.detach(), rows.detach(), columns.detach())
    support, shift, inverse, gap, play, empty = found
    batch.refuse(empty, "sums that can be reached where entries are not -inf")
    dtype, count = rows.dtype, rows.shape[-1]
    # A shift by multipliers changes nothing but the rounding.
    x = batch.x.double().masked_fill(~support, 0) + shift
    excess = torch.cat([rows.double() - x.sum(-1), columns.double() - x.sum(-2)], -1)
    u, v = (inverse @ excess.unsqueeze(-1)).split([count, columns.shape[-1]], -2)
    y = (x + u + v.mT).masked_fill(~support, 0).clamp_min(0)
    missed = _sums_off(y.detach(), rows.detach().double(), columns.detach().double()).abs().amax(-1)
    return batch.finish(y.to(dtype), torch.maximum(gap, missed), play)


def _sums_off(y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """By how much the sums of the rows, then of the columns, are too large, `(..., m + n)`."""
    return torch.cat([y.sum(-1) - rows, y.sum(-2) - columns], -1)


def _found(X: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    """Support and shift `(..., m, n)`, inverse of the Laplacian `(..., m + n, m + n)`; error, rounding, emptiness.

    The shift is that by multipliers, zero outside of the support, so that what is left to correct is rounding.
    """
    X, rows, columns = X.double(), rows.double(), columns.double()
    unit = torch.maximum(rows.amax(-1), columns.amax(-1))
    unit = torch.where(unit > 0, unit, 1)
    size = X.masked_fill(X.isneginf(), 0).abs().amax((-1, -2)) / unit
    near, empty = _newton(X / unit[..., None, None], rows / unit[..., None], columns / unit[..., None])
    rounding = 8 * torch.finfo(X.dtype).eps * (size + 1)[..., None, None]
    support = near > rounding
    values, vectors = torch.linalg.eigh(_laplacian(support.double()))
    kept = values > _RANK * values.amax(-1, keepdim=True)
    inverse = (vectors * torch.where(kept, 1 / torch.where(kept, values, 1), 0).unsqueeze(-2)) @ vectors.mT
    shift = (near * unit[..., None, None] - X).masked_fill(~support, 0)
    off = _sums_off(near.clamp_min(0), rows / unit[..., None], columns / unit[..., None]).abs().amax(-1)
    count = sum(X.shape[-2:]) + 8
    play = 8 * torch.finfo(X.dtype).eps * count * unit
    gap = (off * unit - play * (size + 1)).clamp_min(0)  # multipliers are known to the rounding of the point
    return support, shift, inverse, gap, play, empty


def _laplacian(support: Tensor) -> Tensor:
    """The signless Laplacian `(..., m + n, m + n)` of the bipartite graph of a support."""
    upper = torch.cat([torch.diag_embed(support.sum(-1)), support], -1)
    return torch.cat([upper, torch.cat([support.mT, torch.diag_embed(support.sum(-2))], -1)], -2)


def _newton(X: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """`X + u 1' + 1 v'` for the multipliers, and for which samples `(...)` it is proven that there are none."""
    masked = X.isneginf()
    gone = masked.all(-1, keepdim=True)
    top = X.masked_fill(gone, 0)
    risen = (onto_simplex(top, rows.unsqueeze(-1))[0] - top).masked_fill(masked, -torch.inf).amax(-1, keepdim=True)
    near = X + risen.masked_fill(gone, 0)  # every row has its sum
    eye = torch.eye(sum(X.shape[-2:]), dtype=X.dtype, device=X.device)
    enough = 4 * torch.finfo(X.dtype).eps * len(eye)
    empty = torch.zeros_like(rows[..., 0], dtype=torch.bool)
    for _ in range(_STEPS):
        off = _sums_off(near.clamp_min(0), rows, columns)
        error = off.abs().amax(-1)
        busy = (error > enough) & ~empty
        if not bool(busy.any()):
            break
        damping = (_DAMPING * error.clamp(1e-9, 1))[..., None, None] * eye
        factor = torch.linalg.cholesky_ex(_laplacian((near > 0).to(X.dtype)) + damping)[0]
        way = -torch.cholesky_solve(off.unsqueeze(-1), factor).squeeze(-1)
        near = torch.where(busy[..., None, None], _descended(near, rows, columns, off, way), near)
        empty = empty | (busy & _proves_empty(X, rows, columns, way))
    return near, empty


def _descended(near: Tensor, rows: Tensor, columns: Tensor, off: Tensor, way: Tensor) -> Tensor:
    """A step along the way that lowers the energy, or the error, by enough; its length halved until it does."""
    u, v = way[..., : rows.shape[-1], None], way[..., None, rows.shape[-1] :]
    slope = (off * way).sum(-1)
    fixed = (rows * u[..., 0]).sum(-1) + (columns * v[..., 0, :]).sum(-1)
    energy, length = near.clamp_min(0).square().sum((-1, -2)) / 2, torch.ones_like(slope)
    for _ in range(_HALVINGS):
        new = near + length[..., None, None] * (u + v)
        fall = new.clamp_min(0).square().sum((-1, -2)) / 2 - energy - length * fixed
        good = fall <= _DESCENT * length * slope
        good = good | (2 * _sums_off(new.clamp_min(0), rows, columns).abs().amax(-1) <= off.abs().amax(-1))
        if bool(good.all()):
            break
        length = torch.where(good, length, length / 2)
    return near + length[..., None, None] * (u + v)


def _proves_empty(X: Tensor, rows: Tensor, columns: Tensor, way: Tensor) -> Tensor:
    """Whether these multipliers weigh the sums more than any matrix could that is zero where `X` is `-inf`, `(...)`."""
    u, v = way[..., : rows.shape[-1]], way[..., rows.shape[-1] :]
    most = (u.unsqueeze(-1) + v.unsqueeze(-2)).masked_fill(X.isneginf(), -torch.inf).amax((-1, -2))
    weight, total = (rows * u).sum(-1) + (columns * v).sum(-1), rows.sum(-1)
    return weight - total * most > 1e-9 * total * way.abs().amax(-1)
