"""What counts of two images: masks, and what lies in both of them; weights that are smooth in where things lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimplicit.imaging.image import Image
from torchimplicit.imaging.register.axes import gaussian
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.sample import Interpolation, sample

NEAR = 2.0  # standard deviation, in voxels, of the means of what is near that stand for what is not to be seen


def mask_of(name: str, mask: Image | Tensor | None, image: Image | Tensor, values: Tensor) -> Tensor | None:
    """A mask of an image as floats from 0 to 1, `(B, 1, *S)`, its axes as the image is turned; None for none.

    Args:
        name: of the image, for errors.
        mask: see `align`.
        image: as `align` has it.
        values: of the image, `(B, C, *S)`.

    Raises:
        TypeError: it is no mask, or a tensor where the image is an `Image`, or the other way about.
        ValueError: another grid, or values beyond 0 and 1.
    """
    if mask is None:
        return None
    if isinstance(mask, Image) != isinstance(image, Image) or not isinstance(mask, Image | Tensor):
        kinds = type(mask).__name__, type(image).__name__
        raise TypeError(f"align({name}_mask): got a {kinds[0]}, expected a {kinds[1]}, as the {name} image is")
    if isinstance(mask, Image):
        got, expected = Grid.of(mask), Grid.of(image)
        same = mask.data.ndim == 3 and got.size == expected.size
        if not same or not torch.allclose(got.affine, expected.affine, atol=1e-3):
            raise ValueError(f"align({name}_mask): got a mask on {got}, expected one on the image's grid, {expected}")
        mask = mask.reoriented("RAS").data[None, None]
    shapes = [(n, 1, *values.shape[2:]) for n in (1, len(values))]
    if tuple(mask.shape) not in shapes:
        raise ValueError(f"align({name}_mask): got {tuple(mask.shape)}, expected {shapes[1]}, of one channel")
    mask = mask.detach().expand(len(values), *mask.shape[1:]).to(values)
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(
            f"align({name}_mask): got values from {mask.min():.3g} to {mask.max():.3g}, expected 1 where voxels count, "
            "0 where they do not, or a part; try mask > 0"
        )
    return mask


def filled(image: Tensor, mask: Tensor | None) -> Tensor:
    """An image `(B, C, *S)` with what a mask hides replaced by means of what is seen near it, or of all.

    So nothing downstream, smoothing, splines or windows, learns what was there: not even whether it was a number.
    """
    if mask is None:
        return image
    seen = torch.where(mask > 0, image, 0.0)
    axes = tuple(range(2, image.ndim))
    whole = (mask * seen).sum(axes, keepdim=True) / mask.sum(axes, keepdim=True).clamp_min(1e-6)
    width = [NEAR] * len(axes)
    around = gaussian(mask, width)
    near = gaussian(mask * (seen - whole), width) / around.clamp_min(1e-3)
    return mask * seen + (1 - mask) * (whole + near)


def mean_one(mask: Tensor) -> Tensor:
    """Weights `(B, 1, ...)` of mean square 1, of what is compared: a small mask is no smaller part of itself."""
    return mask / mask.square().flatten(1).mean(1).sqrt().clamp_min(1e-6).view(-1, *[1] * (mask.ndim - 1))


def framed(
    moving: Tensor, mask: Tensor | None, leave: Tensor, interpolation: Interpolation, widths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """A moving image with what counts of it as a channel more, for `looked`, and the map to its voxels.

    Beyond its border is a frame, in which weights fall to nothing: along lines where interpolation is linear, and as
    smoothly as splines do where it is cubic. So to know what lies in the image costs a channel.

    Args:
        moving: `(B, C, *T)`, splines' coefficients where the interpolation is cubic.
        mask: of it, `(B, 1, *T)`, which splines take as it is: so smoothed it is not more than 1. None is all.
        leave: to its voxels, `(B, D + 1, D + 1)`.
        interpolation: of the image.
        widths: of the fall, in voxels of every axis, >= 1.

    Returns:
        `(B, C + 1, *T')` and the map to its voxels.
    """
    found = torch.cat((moving, moving.new_ones(len(moving), 1, *moving.shape[2:]) if mask is None else mask), 1)
    cubic, shift = interpolation == "cubic", leave.new_zeros(leave.shape[-2:])
    for axis, width in enumerate(widths):
        n, rim = moving.shape[2 + axis], width + cubic
        at = torch.arange(-rim, n + rim, device=moving.device)
        beyond = torch.maximum(-at, at - (n - 1))
        at = n - 1 - (n - 1 - at.abs()).abs() if cubic else at  # splines are mirrored
        found = found.index_select(2 + axis, at.clamp(0, n - 1))
        fall = (1 - beyond / width).clamp(0, 1).to(moving)
        fall = fall.view(-1, *[1] * (len(widths) - 1 - axis))
        found = torch.cat((found[:, :-1], found[:, -1:] * fall), 1)
        shift[axis, -1] = rim
    return found, leave + shift


def looked(moving: Tensor, at: Tensor, mask: Tensor, interpolation: Interpolation) -> tuple[Tensor, Tensor]:
    """A moving image at positions, and how much of what is there counts.

    Args:
        moving: see `framed`.
        at: `(B, D, n)`, in its voxels.
        mask: of the fixed image, `(B, 1, n)`, or what broadcasts.
        interpolation: see `sample`.

    Returns:
        Values `(B, C, n)` and weights `(B, 1, n)`.
    """
    found = sample(moving, at, interpolation=interpolation, prefilter=False)
    return found[:, :-1], mask * found[:, -1:]
