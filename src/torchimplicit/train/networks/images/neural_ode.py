"""The neural ODE for images: its field is convolutional and sees the time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchimplicit.core.status import OnFailure
from torchimplicit.nn import NeuralODE, PathPenalty
from torchimplicit.ode import Checkpointed, PathAdjoint, PathSolver, Tsit5
from torchimplicit.train.networks.parts import head, stem
from torchimplicit.train.networks.penalties import paid, weighted


class TimedConvolution(nn.Module):
    """A 3x3 convolution that sees the time as one more channel."""

    def __init__(self, channels: int):
        """Draws the weights."""
        super().__init__()
        self.convolution = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """`(B, channels, H, W)` from the same, at times `(B, 1, 1, 1)`."""
        return self.convolution(torch.cat((x, t.expand(len(x), 1, *x.shape[2:])), 1))


class ConvolutionalField(nn.Module):
    """Two convolutions with group norms and ReLU before them: the field of an ODE-Net."""

    def __init__(self, channels: int, groups: int):
        """Draws the weights."""
        super().__init__()
        self.first, self.second = TimedConvolution(channels), TimedConvolution(channels)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(3))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The slope, like `x`."""
        before, between, after = self.norms
        x = self.first(t, torch.relu(before(x)))
        return after(self.second(t, torch.relu(between(x))))


class ConvolutionalODE(nn.Module):
    """Images to classes: strided convolutions, a neural ODE, a dense layer.

    Source: R. T. Q. Chen et al., arXiv 1806.07366, section 3, with fewer channels.

    Args:
        in_channels: 1 for grey images, 3 for coloured ones.
        channels: of the path.
        groups: of the group norms.
        strides: of the convolutions before it, one each.
        pool: the image that the dense layer sees is averaged to `pool x pool`.
        classes: number of classes.
        solver: integrates the path.
        adjoint: differentiates it.
        penalties: of the path, see `nn.NeuralODE`.
        penalty: their weight; 0 leaves them out.
        on_failure: of the layer. "ignore", as `Classifier` counts what does not arrive and says so once an epoch.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 32,
        groups: int = 8,
        strides: Sequence[int] = (2, 2),
        pool: int = 4,
        classes: int = 10,
        solver: PathSolver = Tsit5(rtol=1e-3, atol=1e-3),
        adjoint: PathAdjoint = Checkpointed(),
        penalties: Sequence[PathPenalty] = (),
        penalty: float = 0.0,
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.classes, self.weight = classes, penalty
        self.stem = stem(in_channels, channels, groups, strides, between=False)
        field = ConvolutionalField(channels, groups)
        self.path = NeuralODE(
            field, solver=solver, adjoint=adjoint, penalties=paid(penalties, penalty), on_failure=on_failure
        )
        self.head = nn.Sequential(nn.ReLU(), *head(channels, pool, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, in_channels, H, W)`."""
        return self.head(self.path(self.stem(x)))

    def penalty(self) -> Tensor:
        """The weighted penalties of the last path, a scalar."""
        return weighted(self.path, self.weight)
