"""How alike two images are: what a registration makes small, or goes along."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def normalised(x: Tensor) -> Tensor:
    """Images of mean 0 and variance 1 in every channel, `(B, C, ...)`; zero where they are constant."""
    flat = x.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    variance = flat.square().mean(2, keepdim=True)
    flat = flat / torch.where(variance > 0, variance, 1.0).sqrt()
    return flat.reshape(x.shape)


@dataclass(frozen=True)
class NCC:
    r"""Normalised cross-correlation, of images whose values are linear functions of each other.

    As residuals, $(\hat w - \hat f) / \sqrt n$ with images $\hat f$, $\hat w$ of mean 0 and variance 1: half the sum of
    their squares is $1 - \mathrm{NCC}$, so that least squares maximise it. Neither scale nor offset of an image, nor
    its sign's habits, change anything.
    """

    def prepared(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """The images in units in which no digits are lost: each its own."""
        return normalised(fixed), normalised(moving)

    def residuals(self, fixed: Tensor, warped: Tensor) -> Tensor:
        """`(B, m)` of images `(B, C, ...)`."""
        return (normalised(warped) - normalised(fixed)).flatten(1) / (fixed[0].numel() ** 0.5)


@dataclass(frozen=True)
class SSD:
    """Mean squared difference of images with the same values of the same matter, by the fixed one's variance."""

    def prepared(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """The images in units in which no digits are lost, and in which numbers are alike: both the fixed one's."""
        flat = fixed.flatten(2)
        offset, scale = flat.mean(2, keepdim=True), flat.std(2, correction=0, keepdim=True)
        offset, scale = (each.view(*each.shape[:2], *[1] * (fixed.ndim - 2)) for each in (offset, scale))
        scale = torch.where(scale > 0, scale, 1.0)
        return (fixed - offset) / scale, (moving - offset) / scale

    def residuals(self, fixed: Tensor, warped: Tensor) -> Tensor:
        """`(B, m)` of images `(B, C, ...)`."""
        return (warped - fixed).flatten(1) / fixed[0].numel() ** 0.5
