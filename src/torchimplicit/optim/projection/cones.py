r"""Projections onto the second-order cone and the cone of positive semidefinite matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core.front_door import front_door
from torchimplicit.optim.projection.batch import Batch, norm, safe_norm
from torchimplicit.optim.projection.spectral import PositivePart


def second_order_cone(x: Tensor) -> Tensor:
    r"""The nearest point of $\{(t, v) : |v|_2 \le t\}$; the first entry of a point is $t$, the rest is $v$.

    Inside, the point itself; for $|v| \le -t$ zero; in between $\tfrac{1}{2} (|v| + t)\, (1, v / |v|)$. On the cone's
    surface the derivative is that from outside, at the apex and on the polar cone's surface it is zero.

    Source: H. Bauschke, PhD thesis, Simon Fraser University (1996), theorem 3.3.6.

    Args:
        x: points `(..., 1 + n)`.

    Returns:
        The projections, as `x`.

    Raises:
        ValueError: a point has no entries.
        TypeError: `x` is not a real floating tensor.
    """
    batch = Batch("second_order_cone", x)
    x = batch.x
    if x.shape[-1] == 1:
        return batch.finish(torch.where(x > 0, x, 0))
    t, v = x[..., :1], x[..., 1:]
    height, length = t.detach(), norm(v)
    inside, polar = length < height, length <= -height
    length = safe_norm(v, ~(inside | polar))
    radius = (length + t) / 2
    surface = torch.cat([radius, v * (radius / length)], -1)
    return batch.finish(torch.where(inside, x, torch.where(polar, 0, surface)))


@front_door
def semidefinite_cone(X: Tensor) -> Tensor:
    r"""The nearest positive semidefinite matrix, of the symmetric part of $X$: its eigenvalues' positive parts.

    With $X = V \operatorname{diag}(\lambda) V^\top$ the derivative is $V (\Gamma \circ V^\top \dot X V) V^\top$, where
    $\Gamma_{ij} = (1 + (\lambda_i + \lambda_j) / (|\lambda_i| + |\lambda_j|)) / 2$ are the divided differences of the
    positive part, between 0 and 1: eigenvalues may be repeated. Between eigenvectors whose eigenvalues are zero, where
    there is no derivative, it is one half. Every order of derivative is right where it exists. Costs one eigenvalue
    problem, and a few products for each derivative.

    Sources: J. Malick, H. Sendov, Set-Valued Analysis 14 (2006) 273, for the derivative; N. Higham, Linear Algebra and
    its Applications 103 (1988) 103, for the projection.

    Args:
        X: matrices `(..., n, n)`; only the symmetric part is looked at.

    Returns:
        The projections, as `X`, exactly symmetric.

    Raises:
        ValueError: the matrices are not square.
        TypeError: `X` is not a real floating tensor.
    """
    batch = Batch("semidefinite_cone", X, event=2)
    if X.shape[-1] != X.shape[-2]:
        raise ValueError(f"semidefinite_cone: got matrices of shape {tuple(X.shape)}, expected (..., n, n)")
    return batch.finish(onto_semidefinite_cone(batch.x))


def onto_semidefinite_cone(X: Tensor) -> Tensor:
    """The projection of finite matrices `(..., n, n)`."""
    positive, *_ = PositivePart.apply((X + X.mT) / 2)  # type: ignore[misc]
    return (positive + positive.mT) / 2
