"""How alike two images are: what a registration makes small, or goes along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.imaging.register.axes import box

NOWHERE = 1e-3  # part of an image that is taken to be unlike, lest nothing at all in common be the best of answers
FLAT = 1e-3  # squared gradient, of an image of variance 1, that hardly pushes


def normalised(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Images of mean 0 and variance 1 in every channel, `(B, C, ...)`; zero where they are constant.

    Args:
        x: images.
        weights: how much every voxel counts, squared, `(B, 1, ...)`; None is all alike.
    """
    flat = x.flatten(2)
    if weights is None:
        flat = flat - flat.mean(2, keepdim=True)
        variance = flat.square().mean(2, keepdim=True)
    else:
        parts = weights.flatten(2).square()
        whole = parts.sum(2, keepdim=True).clamp_min(NOWHERE)
        flat = flat - (flat * parts).sum(2, keepdim=True) / whole
        variance = (flat.square() * parts).sum(2, keepdim=True) / whole
    flat = flat / torch.where(variance > 0, variance, 1.0).sqrt()
    return flat.reshape(x.shape)


def _terms(left: Tensor, weights: Tensor | None) -> Tensor:
    """Residuals `(B, m)` of differences `(B, C, ...)`, whose squares' sum is their mean square where they count."""
    if weights is None:
        return left.flatten(1) / left[0].numel() ** 0.5
    total, rest = weights.square().flatten(1).sum(1, keepdim=True), NOWHERE * left[0, 0].numel()
    seen = (weights * left).flatten(1) / left.shape[1] ** 0.5
    return torch.cat((seen, torch.full_like(total, (2 * rest) ** 0.5)), 1) / (total + rest).sqrt()


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

    def residuals(self, fixed: Tensor, warped: Tensor, weights: Tensor | None = None) -> Tensor:
        """`(B, m)` of images `(B, C, ...)`, and of how much voxels count, squared, `(B, 1, ...)`; None is all alike."""
        both = normalised(torch.cat((warped, fixed), 1), weights)
        return _terms(both[:, : fixed.shape[1]] - both[:, fixed.shape[1] :], weights)

    def loss(
        self, fixed: Tensor, warped: Tensor, units: Sequence[float] | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """1 - NCC, the mean over channels, `(B,)`."""
        return 0.5 * self.residuals(fixed, warped, weights).square().sum(1)


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

    def residuals(self, fixed: Tensor, warped: Tensor, weights: Tensor | None = None) -> Tensor:
        """See `NCC.residuals`."""
        return _terms(warped - fixed, weights)

    def loss(
        self, fixed: Tensor, warped: Tensor, units: Sequence[float] | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Half the mean squared difference, `(B,)`."""
        return 0.5 * self.residuals(fixed, warped, weights).square().sum(1)

    def force(
        self, fixed: Tensor, warped: Tensor, gradient: Tensor, units: Sequence[float], weights: Tensor | None = None
    ) -> Tensor:
        r"""Thirion's, $(f - w) g / (|g|^2 + (f - w)^2)$: at most half a voxel's edge long. `(B, D, *S)`.

        Args:
            fixed: `(B, C, *S)`.
            warped: as `fixed`.
            gradient: of `warped`, `(B, C, D, *S)`.
            units: edges of a voxel, in those that the gradient is in.
            weights: how much every voxel counts, `(B, 1, *S)`; None is all alike.
        """
        left = (fixed - warped).unsqueeze(2)
        size = gradient.square().sum((1, 2), keepdim=True) + left.square().sum(1, keepdim=True)
        force = (left * gradient / (size + FLAT)).sum(1)
        return force if weights is None else weights * force


@dataclass(frozen=True)
class LNCC:
    r"""Local normalised cross-correlation, $\mathrm{cov}^2 / (\mathrm{var}_f \mathrm{var}_w)$ within windows.

    In [0, 1]: 1 where the values in a window are linear functions of each other, rising or falling. Variances count
    with `eps` of the image's more, so that windows of next to nothing have next to no say, and a constant one none.

    Args:
        window: edge in voxels (of mean edge), odd, >= 3.
        eps: > 0, part of the image's variance.
    """

    window: int = 7
    eps: float = 1e-2

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_count(self, "window", least=3)
        require(self, "window", self.window % 2 == 1, "an odd number, so that a window has a middle")
        require(self, "eps", is_number(self.eps) and self.eps > 0, "a number > 0")

    def prepared(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """See `NCC.prepared`: `eps` is of images that are normalised."""
        return normalised(fixed), normalised(moving)

    def value(
        self, fixed: Tensor, warped: Tensor, units: Sequence[float] | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """The mean over all windows, and channels, `(B,)`; see `force`."""
        moments = self._moments(fixed, warped, units or [1.0] * (fixed.ndim - 2), weights)
        alike = moments.cov.square() / (moments.fixed * moments.warped)
        if weights is None:
            return alike.flatten(1).mean(1)
        total = weights.flatten(1).sum(1) + NOWHERE * weights[0].numel()
        return (weights * alike).flatten(2).sum(2).mean(1) / total

    def loss(
        self, fixed: Tensor, warped: Tensor, units: Sequence[float] | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """1 less that, `(B,)`."""
        return 1 - self.value(fixed, warped, units, weights)

    def force(
        self, fixed: Tensor, warped: Tensor, gradient: Tensor, units: Sequence[float], weights: Tensor | None = None
    ) -> Tensor:
        """See `SSD.force`: the similarity's derivative by the value in the window's middle, times the gradient."""
        cov, f, w, fixed, warped = self._moments(fixed, warped, units, weights)
        slope = 2 * cov / (f * w) * (fixed - cov / w * warped)
        slope = slope if weights is None else weights * slope
        return (slope.unsqueeze(2) * gradient).sum(1)

    def _moments(self, fixed: Tensor, warped: Tensor, units: Sequence[float], weights: Tensor | None) -> _Moments:
        widths = [2 * round((self.window / unit - 1) / 2) + 1 for unit in units]
        channels = fixed.shape[1]
        stack = torch.cat((fixed, warped, fixed * warped, fixed.square(), warped.square()), 1)
        if weights is None:
            means = box(stack, widths)
        else:  # what does not count has no say in the windows of what does
            around = box(torch.cat((weights, weights * stack), 1), widths)
            means = around[:, 1:] / around[:, :1].clamp_min(NOWHERE)
        mf, mw, fw, ff, ww = means.split(channels, 1)
        f, w = ((square - mean.square()).clamp_min(0) + self.eps for square, mean in ((ff, mf), (ww, mw)))
        return _Moments(fw - mf * mw, f, w, fixed - mf, warped - mw)


class _Moments(NamedTuple):
    """Of windows: covariance, variances, and what the middle is away from the mean, each as the images."""

    cov: Tensor
    fixed: Tensor
    warped: Tensor
    fixed_middle: Tensor
    warped_middle: Tensor
