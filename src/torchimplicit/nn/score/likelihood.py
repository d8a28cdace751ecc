"""The likelihood of a score model: that of its probability flow, as a continuous normalising flow."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core import transforms


class LevelField(nn.Module):
    r"""The probability flow in $\tau = -\log s$, $du/d\tau = D(u, s) - u$: of order one at every level.

    Args:
        denoiser: the model, a `Denoiser`.
    """

    def __init__(self, denoiser: Any):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, t: Tensor, u: Tensor, label: Tensor | None = None) -> Tensor:
        """The velocity at `tau = t`."""
        return self.denoiser.denoise(u, (-t).exp(), label) - u


class WideNormal(nn.Module):
    """Normal numbers of mean zero and one standard deviation, as the base of a flow that follows the module's device.

    Args:
        shape: of one sample.
        scale: the standard deviation.
        like: a tensor of the dtype and device to be of.
    """

    scale: Tensor

    def __init__(self, shape: torch.Size, scale: float, like: Tensor):
        super().__init__()
        self.shape = shape
        self.register_buffer("scale", like.new_tensor(scale), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """The logarithm of the density, `(B,)`."""
        size = self.shape.numel() * (self.scale.log() + 0.5 * math.log(2 * math.pi))
        return -0.5 * (z / self.scale).square().flatten(1).sum(1) - size

    def sample(self, count: tuple[int]) -> Tensor:
        """Samples, `(*count, *shape)`."""
        return self.scale * torch.randn(*count, *self.shape, dtype=self.scale.dtype, device=self.scale.device)


def check_continuous(owner: str, x: Tensor) -> None:
    """Refuses images of grey levels, which have no density: a model puts ever more of it on them, and means nothing.

    Told by an image of at least 16 entries of which half or more repeat others; not by one of a single value.

    Raises:
        ValueError: there are such images.
    """
    count = x[0].numel() if len(x) else 0
    if count < 16 or torch.finfo(x.dtype).bits < 32 or transforms.active():
        return
    distinct = 1 + (x.detach().flatten(1).sort(1).values.diff(dim=1) != 0).sum(1)
    grey = (distinct > 1) & (2 * distinct <= count)
    if bool(grey.any()):
        first = int(grey.nonzero()[0])
        raise ValueError(
            f"{owner}: got grey levels ({int(distinct[first])} different values in sample {first} of {count}), "
            "expected data with a density; try model.bits_per_dimension(images, levels=...) with whole levels, or "
            "noise of a level's width, images + torch.rand_like(images) * width"
        )


def check_width(owner: str, width: float, least: float) -> None:
    """Refuses a density with so much noise that grey levels blur in it.

    Raises:
        ValueError: the least noise is more than half a level's width.
    """
    if 2 * least > width:
        raise ValueError(
            f"{owner}: got a schedule whose least noise is {least:.3g} for grey levels {width:.3g} wide, expected less "
            "than half of that; try a smaller sigma_min or t_min"
        )


def dequantised(owner: str, images: Any, levels: int, interval: tuple[float, float], part: Tensor) -> Tensor:
    """Whole grey levels, spread out evenly over their widths.

    Args:
        owner: who asks.
        images: levels from 0 to `levels - 1`, `(B, *shape)`, of an integer dtype.
        levels: how many there are.
        interval: of the model's data.
        part: how far into its level each goes, from 0 to 1.

    Raises:
        TypeError: no integers.
        ValueError: other levels.
    """
    if not isinstance(images, Tensor) or images.is_floating_point() or images.is_complex():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"{owner}: got {kind}, expected whole grey levels of an integer dtype, which are spread out here; try "
            "(images * 255).round().long() for images from 0 to 1, or model.log_prob for data with a density"
        )
    if images.dtype == torch.bool and levels != 2:
        raise ValueError(f"{owner}: got black and white images for levels={levels}, expected two; try levels=2")
    if images.numel():
        least, most = (int(end) for end in images.to(torch.int64).aminmax())
        if least < 0 or most >= levels:
            raise ValueError(
                f"{owner}: got grey levels from {least} to {most}, expected 0 to {levels - 1} for levels={levels}; try "
                "another number of levels"
            )
    low, high = interval
    return low + (high - low) / levels * (images.to(part.dtype) + part)
