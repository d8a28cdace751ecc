"""Networks of several resolutions: the multiscale equilibrium model with its two heads, and its explicit rival."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core.options import require
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import MDEQ, ClassificationHead, ConvolutionalStem, SegmentationHead
from torchimplicit.solve import Anderson, Solver
from torchimplicit.train.networks.parts import ResidualBlock


class MDEQClassifier(nn.Module):
    """Images to classes by a multiscale equilibrium; see `torchimplicit.nn.MDEQ`.

    Args:
        in_channels: 1 for grey images, 3 for coloured ones.
        channels: of every resolution, from the finest on.
        groups: of the group norms; divides all channels.
        expansion: channels inside the blocks, as a multiple.
        strides: of the convolutions before the equilibrium, one each.
        pool: what the dense layer sees of every resolution is averaged to `pool x pool`.
        classes: number of classes.
        solver: finds the equilibrium.
        adjoint: differentiates it.
        warm_start: starts from the last batch's equilibrium where the shapes agree.
        on_failure: of the layer. "ignore", as the module counts what does not converge and says so once an epoch.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (24, 48, 96),
        groups: int = 8,
        expansion: int = 1,
        strides: Sequence[int] = (2,),
        pool: int = 2,
        classes: int = 10,
        solver: Solver = Anderson(rtol=1e-2),
        adjoint: Adjoint = Implicit(),
        warm_start: bool = False,
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.classes = classes
        self.backbone = MDEQ(
            in_channels,
            channels,
            groups,
            expansion,
            strides=strides,
            solver=solver,
            adjoint=adjoint,
            warm_start=warm_start,
            on_failure=on_failure,
        )
        self.head = ClassificationHead(channels, classes, pool)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, in_channels, H, W)`."""
        return self.head(self.backbone(x))


class MDEQSegmenter(nn.Module):
    """Images to one class a pixel by a multiscale equilibrium; see `torchimplicit.nn.MDEQ`.

    Args:
        in_channels: see `MDEQClassifier`.
        channels: see `MDEQClassifier`.
        groups: see `MDEQClassifier`.
        expansion: see `MDEQClassifier`.
        strides: see `MDEQClassifier`.
        width: channels of the head.
        classes: number of classes, the background being one.
        solver: see `MDEQClassifier`.
        adjoint: see `MDEQClassifier`.
        warm_start: see `MDEQClassifier`.
        on_failure: see `MDEQClassifier`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64),
        groups: int = 8,
        expansion: int = 1,
        strides: Sequence[int] = (2,),
        width: int = 32,
        classes: int = 2,
        solver: Solver = Anderson(rtol=1e-2),
        adjoint: Adjoint = Implicit(),
        warm_start: bool = False,
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.classes = classes
        self.backbone = MDEQ(
            in_channels,
            channels,
            groups,
            expansion,
            strides=strides,
            solver=solver,
            adjoint=adjoint,
            warm_start=warm_start,
            on_failure=on_failure,
        )
        self.head = SegmentationHead(channels, classes, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes, H, W)` of images `(B, in_channels, H, W)`."""
        return self.head(self.backbone(x), x.shape[2:])


class UNetSegmenter(nn.Module):
    """The explicit rival of `MDEQSegmenter`: the same stem and head around a `UNet`, for equal channels as large.

    Args:
        in_channels: see `MDEQSegmenter`.
        channels: see `MDEQSegmenter`.
        groups: see `MDEQSegmenter`.
        strides: see `MDEQSegmenter`.
        width: see `MDEQSegmenter`.
        classes: see `MDEQSegmenter`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64),
        groups: int = 8,
        strides: Sequence[int] = (2,),
        width: int = 32,
        classes: int = 2,
    ):
        """Draws the weights."""
        super().__init__()
        self.classes = classes
        self.stem = ConvolutionalStem(in_channels, channels[0], groups, strides)
        self.body = UNet(channels, groups)
        self.head = SegmentationHead(channels, classes, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes, H, W)` of images `(B, in_channels, H, W)`."""
        return self.head(self.body(self.stem(x)), x.shape[2:])


class UNet(nn.Module):
    """Residual blocks down the resolutions and up again, what is met on the way down added on the way up.

    With the same channels it has about as many parameters as a `torchimplicit.nn.MultiscaleCell`.

    Source: O. Ronneberger, P. Fischer, T. Brox, MICCAI 2015, arXiv 1505.04597, with residual blocks and sums.

    Args:
        channels: of every resolution, from the finest on.
        groups: of the group norms; divides all channels.
    """

    def __init__(self, channels: Sequence[int], groups: int = 8):
        """Draws the weights."""
        super().__init__()
        self.channels = tuple(channels)
        fits = bool(self.channels) and all(count % groups == 0 for count in self.channels)
        require(self, "channels", fits, f"multiples of groups={groups}, one a resolution")
        pairs = list(zip(self.channels[:-1], self.channels[1:], strict=True))
        self.descend = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        self.ascend = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairs)
        self.before = nn.ModuleList(ResidualBlock(count, groups) for count in self.channels)
        self.after = nn.ModuleList(ResidualBlock(count, groups) for count in self.channels[:-1])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images of all resolutions, the finest first, from one `(B, channels[0], H, W)`."""
        images = [self.before[0](x)]
        for move, block in zip(self.descend, self.before[1:], strict=True):
            images.append(block(move(images[-1])))
        for scale in reversed(range(len(self.after))):
            size = images[scale].shape[2:]
            images[scale] = self.after[scale](
                images[scale] + F.interpolate(self.ascend[scale](images[scale + 1]), size)
            )
        return tuple(images)
