"""Sensitivities of coils, from the middle of the k-space that they have measured."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchimplicit.core.options import is_number, require_count
from torchimplicit.imaging.physics.check import check_finite, check_mask, is_real_or_complex, kind
from torchimplicit.imaging.physics.fourier import PLANE, ifftc


@torch.no_grad()
def espirit(
    kspace: Tensor,
    mask: Tensor | None = None,
    *,
    width: int = 24,
    taps: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
) -> Tensor:
    r"""Coil sensitivities from the fully sampled middle of k-space, of length one at every pixel, or zero.

    Neighbours in k-space are related: the patches of the middle span a space far smaller than that of all patches, and
    what leaves every patch in it is, pixel by pixel, a projection of coils. Its eigenvectors for the eigenvalue one are
    the maps; where no eigenvalue comes near one nothing was received, and they are zero. Their phase is relative to the
    first coil's. As good as the middle is wide: of a head with 8 coils, maps of 18 lines lose -42 dB of the signal,
    those of 9 lines -3 dB, for they are zero in most of it, and with `taps=4` -31 dB. One map a coil: where the body is
    larger than the field of view two of its parts lie in a pixel, and one map is wrong there. Takes memory for $C^2$
    images.

    Source: M. Uecker et al., Magn. Reson. Med. 71 (2014) 990.

    Args:
        kspace: of one slice, complex `(C, H, W)`, centred; zero where nothing was sampled.
        mask: what was sampled, bool, that broadcasts to `(H, W)`; None where every coil has a value that is not zero.
        width: of the middle, at most, in points.
        taps: of a patch, in each direction.
        threshold: singular values of the patches below this part of the largest count as noise.
        crop: eigenvalue below which a pixel has no signal, in [0, 1].

    Returns:
        Maps `(C, H, W)`, like `kspace`.

    Raises:
        TypeError: k-space that is not complex, or a mask that is not bool.
        ValueError: of another shape, not finite; or the sampled middle is too small for one patch.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> x = torch.linspace(-1, 1, 32)
        >>> coils = torch.stack([1 + 0.5 * x, 1 - 0.5 * x]).unsqueeze(1).to(torch.complex64)
        >>> head = ((x[:, None] ** 2 + x**2) < 0.5).float()
        >>> maps = ti.imaging.espirit(ti.imaging.fftc(coils * head))
        >>> expected = coils / coils.norm(dim=0)
        >>> bool(((maps - expected).abs() * head).max() < 0.05)
        True
    """
    mask = _check(kspace, mask, width, taps, threshold, crop)
    rows, columns = _middle(mask, width)
    if min(rows, columns) < taps:
        raise ValueError(
            f"espirit(mask=...): got a sampled middle of {rows} x {columns} points, expected at least {taps} x {taps}; "
            "try maps of a prescan, a mask with a larger center_fraction, or fewer taps"
        )
    height, across = kspace.shape[-2:]
    first, left = height // 2 - rows // 2, across // 2 - columns // 2
    middle = kspace[:, first : first + rows, left : left + columns]
    kernels = _kernels(middle, taps, threshold)
    projection = _projection(kernels, (height, across))
    values, vectors = torch.linalg.eigh(projection)
    maps = vectors[..., -1].movedim(-1, 0)
    maps = maps * torch.exp(-1j * maps[:1].angle())
    return (maps * (values[..., -1] > crop)).to(kspace.dtype)


def _kernels(middle: Tensor, taps: int, threshold: float) -> Tensor:
    """An orthonormal basis of the patches, `(n, C, taps, taps)`."""
    coils = len(middle)
    patches = middle.unfold(1, taps, 1).unfold(2, taps, 1)  # (C, rows, columns, taps, taps)
    matrix = patches.movedim(0, 2).reshape(-1, coils * taps**2)
    _, sizes, basis = torch.linalg.svd(matrix, full_matrices=False)
    return basis[sizes > threshold * sizes[0]].reshape(-1, coils, taps, taps)


def _projection(kernels: Tensor, shape: tuple[int, int]) -> Tensor:
    """What leaves every patch within the basis, as a matrix of coils at every pixel, `(H, W, C, C)`."""
    coils, taps = kernels.shape[1], kernels.shape[-1]
    found = kernels.new_zeros(*shape, coils, coils)
    first = [n // 2 - taps // 2 for n in shape]
    for kernel in kernels:
        pad = (first[1], shape[1] - taps - first[1], first[0], shape[0] - taps - first[0])
        image = ifftc(F.pad(kernel, pad), PLANE).movedim(0, -1)
        found += image.unsqueeze(-1) * image.unsqueeze(-2).conj()
    return found * (math.prod(shape) / taps**2)


def _middle(mask: Tensor, width: int) -> tuple[int, int]:
    """Height and width of the largest rectangle about the zero frequency that is all sampled, up to a width."""
    size = [0, 0]
    grown = True
    while grown:
        grown = False
        for axis in (0, 1):
            larger = [n + (i == axis or n == 0) for i, n in enumerate(size)]
            if max(larger[axis] - min(width, mask.shape[axis]), 0):
                continue
            cut = mask
            for dim, n in enumerate(larger):
                cut = cut.narrow(dim, mask.shape[dim] // 2 - n // 2, n)
            if bool(cut.all()):
                size, grown = larger, True
    return size[0], size[1]


def _check(kspace: Tensor, mask: Tensor | None, width: int, taps: int, threshold: float, crop: float) -> Tensor:
    """The mask `(H, W)`, if all is as it should be."""
    if not (is_real_or_complex(kspace) and kspace.is_complex()):
        raise TypeError(f"espirit(kspace=...): got {kind(kspace)}, expected a complex one")
    if kspace.dim() != 3:
        raise ValueError(
            f"espirit(kspace=...): got shape {tuple(kspace.shape)}, expected (C, H, W) of one slice; try a loop"
        )
    check_finite("espirit", "kspace", kspace)
    require_count("espirit", width=width, taps=taps)
    for name, value in (("threshold", threshold), ("crop", crop)):
        if not (is_number(value) and 0 <= value < 1):
            raise ValueError(f"espirit({name}={value!r}): expected a number in [0, 1)")
    mask = (kspace != 0).all(0) if mask is None else mask
    check_mask("espirit", mask)
    if mask.dim() > 2 or any(n not in (1, m) for n, m in zip(mask.shape[::-1], kspace.shape[:0:-1], strict=False)):
        raise ValueError(
            f"espirit(mask=...): got shape {tuple(mask.shape)}, expected one that broadcasts to "
            f"{tuple(kspace.shape[1:])}"
        )
    return mask.expand(kspace.shape[1:])
