"""Values of images between their voxels: nearest, linear, cubic B-splines; in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import require_instance
from torchimplicit.imaging.register.axes import along, spline_matrix

Interpolation = Literal["nearest", "linear", "cubic"]
Padding = Literal["border", "zeros", "reflection"]
RIM = {"nearest": 1, "linear": 1, "cubic": 12}  # voxels of zeros around an image: a spline's ripples die by 0.27 each


def sample(
    image: Tensor,
    positions: Tensor,
    *,
    interpolation: Interpolation = "linear",
    padding: Padding = "border",
    prefilter: bool = True,
) -> Tensor:
    r"""Values of images at positions in units of voxels, $(i, j, k)$ being the centre of the voxel of that index.

    - "linear" is exact at voxels, to the bit, and has kinks there: a registration that uses it has derivatives, but
      no second ones, and does not converge to many digits.
    - "cubic" is the B-spline through the values, $C^2$ in the positions: exact at voxels but for rounding. It may
      overshoot the image's range where that jumps. Eight (D = 3) times the work of "linear".
    - "nearest" is for labels, and keeps integers; halves go to the even voxel. Its derivative by positions is zero.

    Differentiable by image and positions, any number of times, in both modes, and under `vmap`. A position that is not
    finite gives NaN, and disturbs no other. The paddings say what is outside: "border" the nearest voxel of the border,
    "zeros" zero (towards which the image goes within a voxel), "reflection" the image mirrored about the centres of its
    outermost voxels. With "cubic" the spline itself is that of the mirrored image, but for "zeros".

    Source: P. Thevenaz, T. Blu, M. Unser, IEEE Trans. Medical Imaging 19 (2000) 739, section III.

    Args:
        image: `(B, C, *S)`, two or three dimensions of space; real or complex, with "nearest" also integers.
        positions: `(B, D, *T)`, real; `T` any shape.
        interpolation: see above.
        padding: see above.
        prefilter: False where the image is its `spline_coefficients` already ("cubic" alone): they depend on nothing
            else, and cost as much as sampling.

    Returns:
        `(B, C, *T)`.

    Raises:
        TypeError: an argument is no tensor of such a dtype.
        ValueError: shapes do not fit, or an option is none.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import register
        >>> image = torch.arange(6.0).reshape(1, 1, 2, 3)
        >>> register.sample(image, torch.tensor([[[0.5], [1.0]]]))
        tensor([[[2.5000]]])
    """
    _check(image, positions, interpolation, padding)
    if image.is_complex():
        parts = sample(
            torch.cat((image.real, image.imag), 1),
            positions,
            interpolation=interpolation,
            padding=padding,
            prefilter=prefilter,
        )
        return torch.complex(*parts.chunk(2, 1))
    if padding == "zeros":
        if interpolation == "cubic" and not prefilter:
            raise ValueError(
                "sample(padding='zeros', prefilter=False): the coefficients depend on the zeros; try prefilter=True"
            )
        rim = RIM[interpolation]
        image, positions = torch.nn.functional.pad(image, [rim] * (2 * (image.ndim - 2))), positions + rim
    if interpolation == "cubic" and prefilter:
        image = spline_coefficients(image)
    size = image.shape[2:]
    at = [_inside(positions[:, d].flatten(1), n, padding) for d, n in enumerate(size)]
    axes = [_axis(p, n, interpolation) for p, n in zip(at, size, strict=True)]
    strides = [size[d + 1 :].numel() for d in range(len(size))]
    axes = [
        Axis([stride * index for index in axis.indices], axis.weights)
        for axis, stride in zip(axes, strides, strict=True)
    ]
    values = _blend(image.flatten(2), None, axes)
    return values.reshape(*image.shape[:2], *positions.shape[2:])


def spline_coefficients(image: Tensor) -> Tensor:
    """Weights of the cubic B-splines, one at every voxel, whose sum goes through an image mirrored at its borders.

    What SciPy calls `spline_filter(order=3, mode="mirror")`.

    Args:
        image: `(B, C, *S)`, real or complex.

    Returns:
        As the image.
    """
    for axis in range(2, image.ndim):
        image = along(image, spline_matrix(image.shape[axis]).to(image), axis)
    return image


class Axis(NamedTuple):
    """Of one axis: the neighbours of every position, `(B, N)` offsets each, and their weights; None for one alone."""

    indices: Sequence[Tensor]
    weights: Sequence[Tensor]


def _inside(p: Tensor, n: int, padding: Padding) -> Tensor:
    """Positions along an axis of `n` voxels, moved to where the image is."""
    if n == 1:
        return 0 * p
    if padding == "reflection":
        p = p.remainder(2 * (n - 1))
        return torch.where(p > n - 1, 2 * (n - 1) - p, p)
    return torch.where(p.isnan(), p, p.clamp(0, n - 1))


def _axis(p: Tensor, n: int, interpolation: Interpolation) -> Axis:
    """The neighbours along an axis of `n` voxels, of positions that are inside or NaN."""
    if interpolation == "nearest":
        return Axis([_index(p.round(), n)], [])
    low = p.detach().floor().clamp(max=max(n - 2, 0))
    t, index = p - low, _index(low, n)
    if interpolation == "linear":
        return Axis([index, (index + 1).clamp(max=n - 1)], [t])
    mirrored = [n - 1 - (n - 1 - (index + k).abs()).abs() if n > 1 else index for k in (-1, 0, 1, 2)]
    s = 1 - t
    near, far = t * t * (t / 2 - 1), s * s * (s / 2 - 1)
    return Axis(mirrored, [s**3 / 6, near + 2 / 3, far + 2 / 3, t**3 / 6])


def _index(p: Tensor, n: int) -> Tensor:
    return p.detach().nan_to_num(0, 0, 0).long().clamp(0, n - 1)


def _blend(flat: Tensor, at: Tensor | None, axes: Sequence[Axis]) -> Tensor:
    """The image `(B, C, n)` at indices `(B, N)`, blended along the axes that are left, `(B, C, N)`."""
    if not axes:
        assert at is not None
        return flat.gather(2, at.unsqueeze(1).expand(-1, flat.shape[1], -1))
    first, *rest = axes
    values = [_blend(flat, index if at is None else at + index, rest) for index in first.indices]
    weights = [weight.unsqueeze(1) for weight in first.weights]
    if not weights:
        return values[0]
    if len(weights) == 1:
        return torch.lerp(values[0], values[1], weights[0])
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0)


def _check(image: Tensor, positions: Tensor, interpolation: str, padding: str) -> None:
    """Refuses what cannot be sampled."""
    require_instance("sample(image)", image, Tensor, "torch.zeros(1, 1, 8, 8)")
    require_instance("sample(positions)", positions, Tensor, "torch.zeros(1, 2, 5)")
    if interpolation not in RIM:
        raise ValueError(f"sample(interpolation={interpolation!r}): expected 'nearest', 'linear' or 'cubic'")
    if padding not in ("border", "zeros", "reflection"):
        raise ValueError(f"sample(padding={padding!r}): expected 'border', 'zeros' or 'reflection'")
    if image.ndim not in (4, 5) or 0 in image.shape[2:]:
        raise ValueError(
            f"sample: got an image {tuple(image.shape)}, expected (B, C, H, W) or (B, C, X, Y, Z); "
            "try image[None, None] for one without batch and channels"
        )
    if positions.ndim < 2 or positions.shape[1] != image.ndim - 2 or len(positions) != len(image):
        raise ValueError(
            f"sample: got positions {tuple(positions.shape)} in images {tuple(image.shape)}, expected "
            f"({len(image)}, {image.ndim - 2}, ...); try .expand for what all samples share"
        )
    if not positions.is_floating_point():
        raise TypeError(f"sample(positions): got {positions.dtype}, expected floats; try .float()")
    if interpolation != "nearest" and not (image.is_floating_point() or image.is_complex()):
        raise TypeError(
            f"sample(image): got {image.dtype}, which are no numbers to go between; try interpolation='nearest' "
            "for labels, or .float()"
        )
