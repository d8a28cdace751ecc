r"""Centred orthonormal Fourier transforms, in one place, and what one coil measures of an image with them.

The zero frequency lies at pixel `N // 2`, as scanners, fastMRI and sigpy have it, and $F^H F = I$.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PLANE = (-2, -1)
HALF = torch.float16, torch.bfloat16, torch.complex32


def fftc(x: Tensor, dims: Sequence[int] = PLANE) -> Tensor:
    """The centred orthonormal Fourier transform.

    Args:
        x: real or complex, of any shape.
        dims: along which dimensions.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> ti.imaging.fftc(torch.ones(4), dims=(0,)).real
        tensor([0., 0., 2., 0.])
    """
    dims = tuple(dims)
    x = torch.fft.ifftshift(x, dims)
    return torch.fft.fftshift(transform(x, dims, norm="ortho"), dims)


def ifftc(k: Tensor, dims: Sequence[int] = PLANE) -> Tensor:
    """The inverse of `fftc`, and its adjoint.

    Args:
        k: real or complex, of any shape.
        dims: along which dimensions.
    """
    dims = tuple(dims)
    k = torch.fft.ifftshift(k, dims)
    return torch.fft.fftshift(transform(k, dims, inverse=True, norm="ortho"), dims)


def weighted(x: Tensor, weights: Tensor, dims: Sequence[int] = PLANE) -> Tensor:
    """`ifftc(weights * fftc(x))`, a circular convolution: the shifts of images cancel, that of the weights is left.

    Args:
        x: real or complex, of any shape.
        weights: of the frequencies, centred; they broadcast to `x`.
        dims: along which dimensions; none at all leaves the product.
    """
    dims = tuple(dims)
    if not dims:
        return weights * x
    return transform(torch.fft.ifftshift(weights, dims) * transform(x, dims), dims, inverse=True)


def transform(x: Tensor, dims: Sequence[int] = PLANE, *, inverse: bool = False, norm: str | None = None) -> Tensor:
    """`torch.fft.fftn` or its inverse, also of an empty batch, which the libraries behind it refuse.

    Args:
        x: real or complex, of any shape.
        dims: along which dimensions.
        inverse: back.
        norm: as torch has it.

    Raises:
        TypeError: half precision on a CPU, which has no such transform.
    """
    if x.dtype in HALF and x.device.type == "cpu":
        raise TypeError(f"fftc: got {x.dtype} on a CPU, expected single or double precision; try .float()")
    if not x.numel():
        return x if x.is_complex() else x.to(x.dtype.to_complex())
    return (torch.fft.ifftn if inverse else torch.fft.fftn)(x, dim=tuple(dims), norm=norm)
