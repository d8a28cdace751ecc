"""A small U-Net that sees a time and a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from torchimplicit.core.options import require, require_count
from torchimplicit.train.networks.denoisers.conditions import ConditionEmbedding


class ConditionalUNet(nn.Module):
    """Images to images of the same shape, given a time and a class: residual blocks down the resolutions and up again.

    What is met on the way down is added on the way up. Every block is scaled and shifted by the time and the class;
    activations are smooth, so that a flow can be made of it; the last layer starts at zero, and so the output.

    Source: O. Ronneberger, P. Fischer, T. Brox, arXiv 1505.04597; J. Ho, A. Jain, P. Abbeel, arXiv 2006.11239, with
    sums in place of concatenations and no attention.

    Args:
        in_channels: 1 for grey images, 3 for coloured ones.
        channels: of every resolution, from the finest on, each half the last one.
        groups: of the group norms; divides all channels.
        width: of the vector of time and class.
        classes: see `ConditionEmbedding`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64),
        groups: int = 8,
        width: int = 64,
        classes: int | None = None,
    ):
        """Draws the weights."""
        super().__init__()
        self.in_channels, self.channels, self.groups, self.classes = in_channels, tuple(channels), groups, classes
        require_count(self, "in_channels", "groups")
        fits = bool(self.channels) and all(count % groups == 0 for count in self.channels)
        require(self, "channels", fits, f"multiples of groups={groups}, one a resolution")
        self.condition = ConditionEmbedding(width, classes)
        pairs = list(zip(self.channels[:-1], self.channels[1:], strict=True))
        self.first = nn.Conv2d(in_channels, self.channels[0], 3, padding=1)
        self.before = nn.ModuleList(ConditionalBlock(count, groups, width) for count in self.channels)
        self.descend = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        self.ascend = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairs)
        self.after = nn.ModuleList(ConditionalBlock(count, groups, width) for count in self.channels)
        self.norm = nn.GroupNorm(groups, self.channels[0])
        self.last = nn.Conv2d(self.channels[0], in_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, t: Tensor, x: Tensor, label: Tensor | None = None) -> Tensor:
        """`(B, in_channels, H, W)` from the same, at times `(B, 1, ...)`, and classes `(B,)`, `classes` for none."""
        condition = self.condition(t, label)
        images = [self.before[0](self.first(x), condition)]
        for move, block in zip(self.descend, self.before[1:], strict=True):
            images.append(block(move(images[-1]), condition))
        h = self.after[-1](images.pop(), condition)
        for scale in reversed(range(len(images))):
            coarse = F.interpolate(self.ascend[scale](h), images[scale].shape[2:])
            h = self.after[scale](images[scale] + coarse, condition)
        return self.last(F.silu(self.norm(h)))


class ConditionalBlock(nn.Module):
    """Two convolutions with group norms, scaled and shifted between by a vector, added to what came in.

    Args:
        channels: of the images.
        groups: of the norms.
        width: of the vector.
    """

    def __init__(self, channels: int, groups: int, width: int):
        """Draws the weights; the second convolution starts at zero."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
        self.modulate = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """`(B, channels, H, W)` from the same and `(B, width)`."""
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, 1)
        z = self.norm2(self.conv1(F.silu(self.norm1(h))))
        return h + self.conv2(F.silu(z * (1 + scale) + shift))
