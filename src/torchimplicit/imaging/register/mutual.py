"""Mutual information: how much the values of one image tell of another's, whatever the relation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.options import require_count
from torchimplicit.imaging.register.similarity import NOWHERE

PADDING = 2  # bins beyond an image's range: the reach of a spline, and of what a spline of the image overshoots


@dataclass(frozen=True)
class MutualInformation:
    r"""Mutual information of images of different kinds, $\sum p(a, b) \log(p(a, b) / (p(a) p(b)))$ in nats.

    Of the joint histogram of their values, into which every voxel enters by a cubic B-spline (a Parzen window): twice
    differentiable by both images. Zero of images that tell nothing of each other. Where values are linear functions of
    each other `NCC` is sharper, and takes a third of the time.

    Source: D. Mattes and others, IEEE Trans. Medical Imaging 22 (2003) 120; P. Thevenaz, M. Unser, IEEE Trans. Image
    Processing 9 (2000) 2083.

    Args:
        bins: of either image, >= 8; as many as the number of voxels bears.
    """

    bins: int = 32

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_count(self, "bins", least=8)

    def prepared(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """The images with values from 0 to 1, each its own."""
        return _ranged(fixed), _ranged(moving)

    def value(
        self, fixed: Tensor, warped: Tensor, units: Sequence[float] | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """The mean over channels, `(B,)`, of images `(B, C, ...)` whose values are within 0 and 1; see `LNCC.value`."""
        one, other = (self._windows(each.flatten(2)) for each in (fixed, warped))
        total = other.new_zeros(()) if weights is None else weights.flatten(1).sum(1)
        one = one if weights is None else weights.flatten(2).unsqueeze(3) * one
        joint = one.mT @ other / other.shape[2] + torch.finfo(one.dtype).tiny
        joint = joint / joint.sum((2, 3), keepdim=True)
        apart = joint.sum(3, keepdim=True) * joint.sum(2, keepdim=True)
        tiny = torch.finfo(joint.dtype).tiny ** 0.5
        value = (joint * ((joint + tiny).log() - (apart + tiny).log())).sum((2, 3)).mean(1)
        return value if weights is None else value * total / (total + NOWHERE * weights[0].numel())

    def loss(
        self, fixed: Tensor, warped: Tensor, units: Sequence[float] | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Less that, `(B,)`."""
        return -self.value(fixed, warped, units, weights)

    def _windows(self, values: Tensor) -> Tensor:
        """How much of every value is in every bin, `(B, C, n)` to `(B, C, n, bins)`."""
        last = self.bins - 1 - PADDING
        at = (PADDING + values * (last - PADDING)).clamp(1, self.bins - 2)
        distance = (at.unsqueeze(-1) - torch.arange(self.bins, dtype=at.dtype, device=at.device)).abs()
        near = 2 / 3 - distance.square() * (1 - distance / 2)
        far = (2 - distance).clamp_min(0) ** 3 / 6
        return torch.where(distance < 1, near, far)


def _ranged(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    return ((flat - low) / span).reshape(x.shape)
