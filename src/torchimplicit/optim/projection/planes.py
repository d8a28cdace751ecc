r"""Projections onto halfspaces and affine sets, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core.status import OnFailure
from torchimplicit.linear.batched import times
from torchimplicit.optim.projection.batch import Batch, Scalar, norm


def halfspace(x: Tensor, a: Tensor, b: Scalar, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest point of $\{a^\top y \le b\}$: $x - \max(0, a^\top x - b)\, a / |a|^2$.

    On the boundary the derivative is that from outside, $I - a a^\top / |a|^2$.

    Args:
        x: points `(..., n)`.
        a: the normal, `(n,)` or `(..., n)`; a zero normal with `b >= 0` keeps all points.
        b: the offset, a number or one per sample, `(...)`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The projections, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a normal is zero with a negative offset, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.
    """
    batch = Batch("halfspace", x, on_failure=on_failure)
    a, b = batch.vector("a", a), batch.scalar("b", b)
    length = norm(a)
    real = length > 0
    batch.refuse((~real & (b.detach() < 0))[..., 0], "a normal that is not zero, or b >= 0", b=b[..., 0])
    length = torch.where(real, length, 1)  # of no derivative: scaling both sides changes nothing but the rounding
    a, b = a / length, b / length
    size = torch.where(real, a.square().sum(-1, keepdim=True), 1)
    excess = (a * batch.x).sum(-1, keepdim=True) - b
    outside = real & (excess.detach() >= 0)
    y = batch.x - a * (excess / size)
    with torch.no_grad():  # what the first subtraction lost of the digits of a far point
        again = a * ((a * y).sum(-1, keepdim=True) - b)
    y = torch.where(outside, y - again.detach(), batch.x)
    # On the plane, and from the point to there along the normal: nothing else can be wrong.
    terms = a.detach() * y.detach()
    gap = (terms.sum(-1, keepdim=True) - b.detach()).abs().masked_fill(~outside, 0)
    play = 4 * torch.finfo(y.dtype).eps * (y.shape[-1] + 8) * (terms.abs().sum(-1, keepdim=True) + b.detach().abs())
    return batch.finish(y, gap, play)


def affine(x: Tensor, A: Tensor, b: Tensor, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest point of $\{A y = b\}$: $x - A^+ (A x - b)$, with the pseudoinverse from singular values.

    Rows may depend on each other, where `b` agrees: singular values below $10 \max(p, n)\,\varepsilon$ of the largest
    are zero, and the derivative by `A` is that among matrices of this rank. Costs a singular value decomposition of
    every matrix; one that is shared is decomposed once.

    Args:
        x: points `(..., n)`.
        A: the rows, `(p, n)` or `(..., p, n)`; `p` may be zero.
        b: the right-hand side, `(p,)` or `(..., p)`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite.

    Returns:
        The projections, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: the equations of a sample contradict each other, or shapes do not fit.
        TypeError: `x` is not a real floating tensor.
    """
    batch = Batch("affine", x, on_failure=on_failure)
    A = batch.matrix("A", A)
    rows = A.shape[-2]
    b = batch.entry("b", b, (*batch.shape, rows))
    if not rows:
        return batch.finish(batch.x)
    b = batch.healthy(b, 1 if b.dim() else 0, 0.0)
    size = A.detach().abs().amax((-1, -2), keepdim=True)
    size = torch.where(size > 0, size, 1)  # of no derivative: scaling both sides changes nothing but the rounding
    A, b = A / size, b / size[..., 0]
    eps = torch.finfo(A.dtype).eps * max(A.shape[-2:])
    inverse = torch.linalg.pinv(A, rtol=10 * eps)
    y = batch.x - times(inverse, times(A, batch.x) - b)
    with torch.no_grad():
        again = times(inverse, times(A, y) - b)
    y = y - again.detach()
    wrong = norm(times(A, y) - b)
    allowed = 100 * eps * (norm(A.flatten(-2)) * norm(y) + norm(b.expand(*b.shape[:-1], rows) if b.dim() else b[None]))
    batch.refuse((wrong > allowed)[..., 0], "rows that do not contradict each other", residual=wrong[..., 0])
    return batch.finish(y)
