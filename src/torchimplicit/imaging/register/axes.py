"""Linear maps of images axis by axis, as products with small matrices: filters, smoothing, splines.

A matrix of the size of an axis is no detour: it is differentiable any number of times, batched by `vmap`, has its
border in it, and takes a fifth of the time of a convolution with nine weights (64 voxels an axis, one core).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.core import transforms

REACH = 3.0  # standard deviations at which a Gaussian is cut off


def along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiplies the vectors along an axis of `x`, of length `n`, by a matrix `(m, n)`."""
    n, after = x.shape[axis], x.shape[axis + 1 :].numel()
    shape = (*x.shape[:axis], len(matrix), *x.shape[axis + 1 :])
    if after == 1:
        return (x.reshape(-1, n) @ matrix.mT).reshape(shape)
    return (matrix @ x.reshape(-1, n, after)).reshape(shape)


def mapped(matrix: Tensor, x: Tensor) -> Tensor:
    """Places `(B, D, n)`, or `(D, n)` for all samples, under maps in homogeneous coordinates `(B, D + 1, D + 1)`.

    Number by number: a product of matrices rounds a batch of one otherwise than the same sample beside others.
    """
    *columns, found = matrix[:, :-1].unsqueeze(3).unbind(2)
    for axis, column in enumerate(columns):
        found = found + column * x[..., axis : axis + 1, :]
    return found


def gaussian(x: Tensor, sigma: Sequence[float | Tensor]) -> Tensor:
    """Convolves with a Gaussian of sum one, cut off at three standard deviations; beyond the border is its value.

    Args:
        x: `(B, C, *S)`.
        sigma: standard deviations, one a dimension of space, in voxels; tensors get gradients.

    Returns:
        As `x`.
    """
    for axis, width in enumerate(sigma, 2):
        reach = round(REACH * float(width.detach() if isinstance(width, Tensor) else width))
        if reach and x.shape[axis] > 1:
            t = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
            weights = torch.exp(-0.5 * (t / width) ** 2)
            x = along(x, _band(weights / weights.sum(), x.shape[axis]), axis)
    return x


def box(x: Tensor, widths: Sequence[int]) -> Tensor:
    """Means over windows of odd widths, one a dimension of space; as `gaussian`."""
    for axis, width in enumerate(widths, 2):
        if width > 1 and x.shape[axis] > 1:
            x = along(x, _box(width, x.shape[axis]).to(x), axis)
    return x


@transforms.remembered
def _box(width: int, n: int) -> Tensor:
    return _band(torch.full((width,), 1 / width, dtype=torch.float64, device="cpu"), n)


def _band(weights: Tensor, n: int) -> Tensor:
    """The matrix `(n, n)` of a correlation with an odd number of weights."""
    reach = len(weights) // 2
    at = torch.arange(n, device=weights.device)
    beside = (at[:, None] + torch.arange(-reach, reach + 1, device=weights.device)).clamp(0, n - 1)
    return weights.new_zeros(n, n).scatter_add(1, beside, weights.expand(n, -1))


def halved(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Means of pairs of voxels along some dimensions of space; the last voxel of an odd number is left out."""
    for axis in axes:
        n = x.shape[2 + axis] // 2
        x = x.narrow(2 + axis, 0, 2 * n).unflatten(2 + axis, (n, 2)).mean(3 + axis)
    return x


@transforms.remembered
def spline_matrix(n: int) -> Tensor:
    """From `n` values to the coefficients of the cubic B-spline through them, mirrored, `(n, n)` in float64."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64, device="cpu")
    beside = torch.full((n - 1,), 1 / 6, dtype=torch.float64, device="cpu")
    matrix = torch.diag(torch.full((n,), 2 / 3, dtype=torch.float64, device="cpu")) + beside.diag(1) + beside.diag(-1)
    matrix[0, 1] = matrix[-1, -2] = 1 / 3
    return torch.linalg.inv(matrix)
