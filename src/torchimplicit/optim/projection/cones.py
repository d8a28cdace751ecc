r"""Projections onto the second-order cone and the cone of positive semidefinite matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.optim.projection.batch import Batch, polar
from torchimplicit.optim.projection.spectral import PositivePart


def second_order_cone(x: Tensor, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest point of $\{(t, v) : |v|_2 \le t\}$; the first entry of a point is $t$, the rest is $v$.

    Inside, the point itself; for $|v| \le -t$ zero; in between $\tfrac{1}{2} (|v| + t)\, (1, v / |v|)$. On the cone's
    surface the derivative is that from outside, at the apex and on the polar cone's surface it is zero. Where $t$ is
    `-inf` the projection is zero.

    Source: H. Bauschke, PhD thesis, Simon Fraser University (1996), theorem 3.3.6.

    Args:
        x: points `(..., 1 + n)`.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The projections, as `x`.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: a point has no entries.
        TypeError: `x` is not a real floating tensor.
    """
    batch = Batch("second_order_cone", x, masks="all", on_failure=on_failure)
    batch.exclude(batch.x.detach()[..., 1:] == -torch.inf)
    return batch.finish(*onto_second_order_cone(batch.x))


def onto_second_order_cone(x: Tensor) -> tuple[Tensor, Tensor | None, float]:
    """The projection of points `(..., 1 + n)`, the first entry at most infinite; and how sure it is.

    In between the cone and its polar it is a multiple of a direction: by how much its length is off is the whole error.
    """
    if x.shape[-1] == 1:
        return torch.where(x > 0, x, 0), None, 0.0
    t, v = x[..., :1], x[..., 1:]
    length, direction, gap = polar(v)
    height, plain = t.detach(), length.detach()
    inside, below = plain < height, plain <= -height
    t = t.masked_fill(below, 0)
    radius = length / 2 + t / 2  # their sum may be too large
    surface = torch.cat([radius, radius * direction], -1)
    play = 4 * torch.finfo(x.dtype).eps * (x.shape[-1] + 8)
    return torch.where(inside, x, surface.masked_fill(below, 0)), gap, play


@public
def semidefinite_cone(X: Tensor, *, on_failure: OnFailure = "raise") -> Tensor:
    r"""The nearest positive semidefinite matrix, of the symmetric part of $X$: its eigenvalues' positive parts.

    With $X = V \operatorname{diag}(\lambda) V^\top$ the derivative is $V (\Gamma \circ V^\top \dot X V) V^\top$, where
    $\Gamma_{ij} = (1 + (\lambda_i + \lambda_j) / (|\lambda_i| + |\lambda_j|)) / 2$ are the divided differences of the
    positive part, between 0 and 1: eigenvalues may be repeated. Between eigenvectors whose eigenvalues are zero, where
    there is no derivative, it is one half. Every order of derivative is right where it exists. Rows and columns whose
    entry on the diagonal is `-inf` are zero. Costs one eigenvalue problem, and a few products for each derivative.

    Sources: J. Malick, H. Sendov, Set-Valued Analysis 14 (2006) 273, for the derivative; N. Higham, Linear Algebra and
    its Applications 103 (1988) 103, for the projection.

    Args:
        X: matrices `(..., n, n)`; only the symmetric part is looked at.
        on_failure: "raise", "warn" or "ignore" samples that are not finite or miss their condition.

    Returns:
        The projections, as `X`, exactly symmetric.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
        ValueError: the matrices are not square.
        TypeError: `X` is not a real floating tensor.
    """
    batch = Batch("semidefinite_cone", X, event=2, masks="all", on_failure=on_failure)
    if X.shape[-1] != X.shape[-2]:
        raise ValueError(f"semidefinite_cone: got matrices of shape {tuple(X.shape)}, expected (..., n, n)")
    X = batch.x.detach()
    gone = X.diagonal(dim1=-2, dim2=-1) == -torch.inf
    gone = gone.unsqueeze(-1) | gone.unsqueeze(-2)
    batch.exclude(~gone & (-torch.inf == X))
    Y, *sure = onto_semidefinite_cone(batch.x.masked_fill(gone, 0))
    return batch.finish(Y.masked_fill(gone, 0), *sure)


def onto_semidefinite_cone(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The projection of finite matrices `(..., n, n)`; and how sure it is.

    By how much eigenvalues and eigenvectors miss the matrix, `(...)`, and the rounding to be expected of that.
    """
    X = (X + X.mT) / 2
    positive, values, vectors = PositivePart.apply(X)
    missed = (vectors * values.unsqueeze(-2)) @ vectors.mT - X.detach()
    play = 16 * torch.finfo(X.dtype).eps * X.shape[-1] * values.abs().amax(-1)
    return (positive + positive.mT) / 2, missed.abs().amax((-1, -2)), play
