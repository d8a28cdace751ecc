"""What reads the equilibrium of a multiscale model: one label an image, or one a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchimplicit.core.options import is_count, require, require_count
from torchimplicit.nn.equilibrium.multiscale import States


class ClassificationHead(nn.Module):
    """One label an image: every resolution is averaged to `pool x pool` pixels, a dense layer reads them all.

    Source: the idea of S. Bai, V. Koltun, J. Z. Kolter, arXiv 2006.08656, section 3.3, in a smaller form: the paper
    joins the resolutions by strided convolutions.

    Args:
        channels: of every resolution.
        classes: number of classes.
        pool: pixels in each direction that are left to the dense layer.

    Raises:
        ValueError: a number is impossible.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> model = ti.nn.MDEQ(in_channels=3, channels=(8, 16), groups=4)
        >>> head = ti.nn.ClassificationHead(model.channels, classes=10)
        >>> head(model(torch.randn(2, 3, 16, 16))).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: Sequence[int], classes: int, pool: int = 2):
        """Draws the weights."""
        super().__init__()
        self.channels, self.classes, self.pool = tuple(channels), classes, pool
        _check(self)
        require_count(self, "pool")
        self.linear = nn.Linear(sum(self.channels) * pool**2, classes)

    def forward(self, states: States) -> Tensor:
        """Logits `(B, classes)` of a tuple `(B, channels[i], H_i, W_i)`.

        Raises:
            ValueError: the tuple does not fit the channels.
        """
        _check_states(self, states)
        pooled = [F.adaptive_avg_pool2d(state, self.pool).flatten(1) for state in states]
        return self.linear(torch.cat(pooled, 1))


class SegmentationHead(nn.Module):
    """One label a pixel: every resolution is brought to the finest, two 1 x 1 convolutions read them all.

    Their answer is interpolated to the size that is asked for: what is finer than the finest resolution stays blurred,
    so that for objects of a few pixels the strides before the equilibrium should be small.

    Source: S. Bai, V. Koltun, J. Z. Kolter, arXiv 2006.08656, section 3.3.

    Args:
        channels: of every resolution.
        classes: number of classes.
        width: channels between the convolutions.
        groups: of the group norm between them; divides the width.

    Raises:
        ValueError: a number is impossible.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> model = ti.nn.MDEQ(in_channels=1, channels=(8, 16), groups=4)
        >>> head, x = (
        ...     ti.nn.SegmentationHead(model.channels, classes=2),
        ...     torch.randn(2, 1, 20, 15),
        ... )
        >>> head(model(x), x.shape[2:]).shape
        torch.Size([2, 2, 20, 15])
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int = 32, groups: int = 8):
        """Draws the weights."""
        super().__init__()
        self.channels, self.classes, self.width, self.groups = tuple(channels), classes, width, groups
        _check(self)
        require_count(self, "width", "groups")
        require(self, "width", width % groups == 0, f"a multiple of groups={groups}, for the group norm")
        self.mix = nn.Conv2d(sum(self.channels), width, 1, bias=False)
        self.norm = nn.GroupNorm(groups, width)
        self.label = nn.Conv2d(width, classes, 1)

    def forward(self, states: States, size: Sequence[int]) -> Tensor:
        """Logits `(B, classes, *size)` of a tuple `(B, channels[i], H_i, W_i)`.

        Raises:
            ValueError: the tuple does not fit the channels.
        """
        _check_states(self, states)
        finest = states[0].shape[2:]
        joined = torch.cat([states[0], *(_resized(state, finest) for state in states[1:])], 1)
        return _resized(self.label(F.relu(self.norm(self.mix(joined)))), size)


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(image, tuple(size), mode="bilinear", align_corners=False)


def _check(head: ClassificationHead | SegmentationHead) -> None:
    counts = all(map(is_count, head.channels))
    require(head, "channels", bool(head.channels) and counts, "one integer >= 1 a resolution, one resolution or more")
    require_count(head, "classes")


def _check_states(head: ClassificationHead | SegmentationHead, states: States) -> None:
    shapes = [tuple(state.shape) for state in states]
    if isinstance(states, Tensor) or tuple(shape[1] for shape in shapes if len(shape) == 4) != head.channels:
        raise ValueError(
            f"{type(head).__name__}(channels={head.channels}): got states of shapes {shapes}, expected one image "
            "(B, channels, H, W) a resolution; try head(model(x)) with the channels of an MDEQ"
        )
