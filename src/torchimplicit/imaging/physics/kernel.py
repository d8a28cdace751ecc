"""Kernels of blurs: their weights sum to one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require_count

FINE = 32  # points a pixel along the path of a motion


def gaussian_kernel(size: int, sigma: float | Tensor) -> Tensor:
    """A Gaussian at the pixels' centres, `(size, size)`, differentiable in its width.

    Args:
        size: pixels a side, odd; six times `sigma` hold 99.7 % of it.
        sigma: standard deviation in pixels, > 0, a number or a tensor of one.

    Examples:
        >>> import torchimplicit as ti
        >>> ti.imaging.gaussian_kernel(3, 0.5)[1]
        tensor([0.0838, 0.6193, 0.0838])
    """
    _check_size("gaussian_kernel", size)
    if not isinstance(sigma, Tensor):
        if not is_number(sigma) or not 0 < sigma < math.inf:
            raise ValueError(f"gaussian_kernel(sigma={sigma!r}): expected a number > 0")
        sigma = torch.tensor(float(sigma), device="cpu")
    place = torch.arange(size, dtype=sigma.dtype, device=sigma.device) - size // 2
    row = torch.softmax(-(place**2) / (2 * sigma**2), 0)
    return row[:, None] * row


def motion_kernel(size: int, length: float, angle: float = 0.0) -> Tensor:
    """A camera that moves evenly along a line while it sees, `(size, size)`, shared out bilinearly among pixels.

    Args:
        size: pixels a side, odd.
        length: of the line in pixels, from 0 to `size - 1`.
        angle: of the line in degrees, from the horizontal, upwards.

    Examples:
        >>> import torchimplicit as ti
        >>> ti.imaging.motion_kernel(3, 2.0)[1]
        tensor([0.2500, 0.5000, 0.2500])
    """
    _check_size("motion_kernel", size)
    if not is_number(length) or not 0 <= length <= size - 1:
        raise ValueError(f"motion_kernel(length={length!r}): expected a number in [0, {size - 1}], within the kernel")
    if not is_number(angle) or not math.isfinite(angle):
        raise ValueError(f"motion_kernel(angle={angle!r}): expected a finite number of degrees")
    count = max(math.ceil(FINE * length), 1)
    along = length * ((torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) / count - 0.5)
    turn = math.radians(angle)
    pixel = torch.arange(size, dtype=torch.float64, device="cpu")[:, None]
    near = [(1 - (pixel - size // 2 - along * part).abs()).clamp_min(0) for part in (-math.sin(turn), math.cos(turn))]
    kernel = near[0] @ near[1].mT
    return (kernel / kernel.sum()).float()


def _check_size(owner: str, size: int) -> None:
    require_count(owner, size=size)
    if size % 2 == 0:
        raise ValueError(f"{owner}(size={size}): expected an odd number, so that the kernel has a centre")
