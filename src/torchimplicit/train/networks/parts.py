"""What networks share: what comes before the layer that solves, what comes after it, and what explicit rivals stack."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def stem(in_channels: int, channels: int, groups: int, strides: Sequence[int], between: bool = True) -> nn.Sequential:
    """A convolution and a group norm for every stride.

    Args:
        in_channels: 1 for grey images, 3 for coloured ones.
        channels: of the convolutions.
        groups: of the norms.
        strides: one each.
        between: whether ReLU stands between them.
    """
    modules: list[nn.Module] = []
    for stride in strides:
        modules += [nn.ReLU()] if modules and between else []
        modules += [nn.Conv2d(in_channels, channels, 3, stride, padding=1), nn.GroupNorm(groups, channels)]
        in_channels = channels
    return nn.Sequential(*modules)


def head(channels: int, pool: int, classes: int) -> nn.Sequential:
    """A dense layer of an image averaged to `pool x pool`."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(pool), nn.Flatten(), nn.Linear(channels * pool**2, classes))


def dense(*widths: int) -> nn.Sequential:
    """Dense layers with tanh between."""
    modules = [module for pair in pairwise(widths) for module in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*modules[:-1])


class ResidualBlock(nn.Module):
    """Two convolutions with group norms, added to what came in."""

    def __init__(self, channels: int, groups: int):
        """Draws the weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, channels)

    def forward(self, z: Tensor) -> Tensor:
        """`(B, channels, H, W)` from the same."""
        return nn.functional.relu(z + self.norm2(self.conv2(nn.functional.relu(self.norm1(self.conv1(z))))))
