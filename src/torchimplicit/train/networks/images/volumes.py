"""Maps of what a volume shows: a small U-Net that works at half the resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchimplicit.core.options import require, require_count

GROUPS = 4  # of the group norms
MULTIPLE = 8  # of voxels along an axis


class LabelMaps(nn.Module):
    r"""Probabilities of labels at every voxel: features by which volumes of the same matter register.

    Cubes of 2 x 2 x 2 voxels become channels, a U-Net of three resolutions looks at these, and its channels become
    cubes again: an eighth of the work, at the full resolution's sharpness where labels change.

    Source: O. Ronneberger, P. Fischer, T. Brox, MICCAI 2015, arXiv 1505.04597; the cubes from W. Shi and others, CVPR
    2016, section 3.2.

    Args:
        labels: how many, without the background.
        width: channels at half the resolution; twice as many below. A multiple of 4.
        temperature: what logits are divided by before they become probabilities: above 1 edges are soft, and their
            gradients reach further.

    Examples:
        >>> import torch
        >>> from torchimplicit.train.networks import LabelMaps
        >>> LabelMaps(labels=2, width=4)(torch.zeros(1, 1, 10, 12, 9)).shape
        torch.Size([1, 2, 10, 12, 9])
    """

    def __init__(self, labels: int = 2, width: int = 16, temperature: float = 1.0):
        """Draws the weights."""
        super().__init__()
        self.labels, self.width, self.temperature = labels, width, temperature
        require_count(self, "labels")
        require(self, "width", width > 0 and width % GROUPS == 0, f"a multiple of {GROUPS}")
        require(self, "temperature", 0 < temperature < float("inf"), "a finite number > 0")
        self.down = nn.ModuleList([_block(8, width), _block(width, 2 * width), _block(2 * width, 2 * width)])
        self.up = nn.ModuleList([_block(4 * width, 2 * width), _block(3 * width, width)])
        self.head = nn.Conv3d(width, 8 * (labels + 1), 1)

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities `(B, labels, *S)` of images `(B, 1, *S)` of mean 0 and variance 1."""
        return (self.logits(image) / self.temperature).softmax(1)[:, 1:]

    def logits(self, image: Tensor) -> Tensor:
        """Logits `(B, labels + 1, *S)`, the first of the background."""
        if image.ndim != 5 or image.shape[1] != 1:
            raise ValueError(f"LabelMaps: got images {tuple(image.shape)}, expected (B, 1, X, Y, Z)")
        size = image.shape[2:]
        ends = [amount for n in reversed(size) for amount in (0, -n % MULTIPLE)]
        x = F.pad(image, ends, mode="replicate") if any(ends) else image
        seen = [self.down[0](_channels(x))]
        for block in list(self.down)[1:]:
            seen.append(block(F.avg_pool3d(seen[-1], 2)))
        x = seen.pop()
        for block in self.up:
            fine = seen.pop()
            x = F.interpolate(x, size=fine.shape[2:], mode="trilinear", align_corners=False)
            x = block(torch.cat((fine, x), 1))
        return _cubes(self.head(x))[(..., *[slice(n) for n in size])]


def _channels(x: Tensor) -> Tensor:
    """`(B, C, 2 X, 2 Y, 2 Z)` as `(B, 8 C, X, Y, Z)`."""
    parts = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return parts.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _cubes(x: Tensor) -> Tensor:
    """`(B, 8 C, X, Y, Z)` as `(B, C, 2 X, 2 Y, 2 Z)`: undoes `_channels`."""
    parts = x.unflatten(1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for count in (inputs, outputs):
        layers += [nn.Conv3d(count, outputs, 3, padding=1), nn.GroupNorm(GROUPS, outputs), nn.SiLU()]
    return nn.Sequential(*layers)
