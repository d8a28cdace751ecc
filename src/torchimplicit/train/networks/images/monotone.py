"""Monotone equilibrium networks for images: convolutional, dense, of several resolutions; and an explicit rival."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core.options import require
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import MonotoneConv, MonotoneDEQ, MonotoneLinear, MonotoneTiers
from torchimplicit.nn.equilibrium.monotone import Splitting
from torchimplicit.solve import Anderson, Solver
from torchimplicit.train.networks.parts import head


class MonotoneConvolutional(nn.Module):
    """Images to classes: a strided convolution, the equilibrium of `MonotoneConv`, averaging, a dense layer.

    Source: E. Winston and J. Z. Kolter, Monotone operator equilibrium networks (2020, arXiv 2006.08591), the single
    convolution, with a strided injection so that it runs on a CPU.

    Args:
        in_channels: 1 for grey images, 3 for coloured ones.
        channels: of the equilibrium.
        image: height and width of the images.
        stride: of the injection, whose kernel has `2 * stride - 1` pixels a side, at least three.
        pool: the image that the dense layer sees is averaged to `pool x pool`.
        classes: number of classes.
        strength: see `MonotoneConv`.
        scale: see `MonotoneConv`.
        splitting: see `MonotoneDEQ`.
        step: see `MonotoneDEQ`.
        solver: finds the equilibrium.
        adjoint: differentiates it.
        on_failure: of the layer. "ignore", as `Classifier` counts what does not converge and says so once an epoch.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 56,
        image: int = 28,
        stride: int = 2,
        pool: int = 7,
        classes: int = 10,
        strength: float = 1.0,
        scale: float = 0.5,
        splitting: Splitting = "peaceman-rachford",
        step: float | None = None,
        solver: Solver = Anderson(rtol=1e-2),
        adjoint: Adjoint = Implicit(),
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.classes, self.image, self.stride = classes, image, stride
        _check(self)
        cell = MonotoneConv(channels, image // stride, strength=strength, scale=scale)
        self.inject = injection(in_channels, channels, stride)
        self.equilibrium = MonotoneDEQ(cell, splitting, step, solver, adjoint, on_failure=on_failure)
        self.head = head(channels, pool, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, in_channels, image, image)`."""
        return self.head(self.equilibrium(self.inject(x)))


class MonotoneMultitier(nn.Module):
    """Images to classes by the equilibrium of `MonotoneTiers`: every resolution sees the image and feeds the head.

    Args:
        in_channels: see `MonotoneConvolutional`.
        channels: of each tier, finest first.
        image: height and width of the images.
        stride: of the injection into the finest tier.
        pool: every tier is averaged to `pool x pool` for the dense layer.
        classes: number of classes.
        strength: see `MonotoneTiers`.
        coupling: see `MonotoneTiers`.
        scale: see `MonotoneTiers`.
        splitting: see `MonotoneDEQ`.
        step: see `MonotoneDEQ`.
        solver: finds the equilibrium.
        adjoint: differentiates it.
        on_failure: see `MonotoneConvolutional`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 46),
        image: int = 28,
        stride: int = 2,
        pool: int = 4,
        classes: int = 10,
        strength: float = 1.0,
        coupling: float = 0.5,
        scale: float = 0.5,
        splitting: Splitting = "peaceman-rachford",
        step: float | None = None,
        solver: Solver = Anderson(rtol=1e-2),
        adjoint: Adjoint = Implicit(),
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.classes, self.image, self.stride = classes, image, stride
        _check(self)
        cell = MonotoneTiers(channels, image // stride, strength=strength, coupling=coupling, scale=scale)
        self.inject = nn.ModuleList(injection(in_channels, count, stride * 2**i) for i, count in enumerate(channels))
        self.equilibrium = MonotoneDEQ(cell, splitting, step, solver, adjoint, on_failure=on_failure)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(sum(channels) * pool**2, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, in_channels, image, image)`."""
        cell: Any = self.equilibrium.cell.cell
        z = self.equilibrium(cell.pack([inject(x) for inject in self.inject]))
        return self.head(torch.cat([self.pool(tier) for tier in cell.unpack(z)], dim=1))


class MonotoneDense(nn.Module):
    """Images to classes by the equilibrium of `MonotoneLinear`, between two dense layers.

    Args:
        pixels: of an image.
        width: of the equilibrium.
        classes: number of classes.
        strength: see `MonotoneLinear`.
        splitting: see `MonotoneDEQ`.
        step: see `MonotoneDEQ`.
        solver: finds the equilibrium.
        adjoint: differentiates it.
        on_failure: see `MonotoneConvolutional`.
    """

    def __init__(
        self,
        pixels: int = 784,
        width: int = 94,
        classes: int = 10,
        strength: float = 0.1,
        splitting: Splitting = "peaceman-rachford",
        step: float | None = None,
        solver: Solver = Anderson(rtol=1e-2),
        adjoint: Adjoint = Implicit(),
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.classes = classes
        self.inject = nn.Sequential(nn.Flatten(), nn.Linear(pixels, width))
        cell = MonotoneLinear(width, strength)
        self.equilibrium = MonotoneDEQ(cell, splitting, step, solver, adjoint, on_failure=on_failure)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, ...)`."""
        return self.head(self.equilibrium(self.inject(x)))


class PlainConvolutional(nn.Module):
    """The explicit rival of `MonotoneConvolutional`: the same injection and head, convolutions and ReLU between them.

    Two layers have as many weights as `A` and `B`, and biases.

    Args:
        in_channels: see `MonotoneConvolutional`.
        channels: of the layers.
        layers: how many.
        image: see `MonotoneConvolutional`.
        stride: see `MonotoneConvolutional`.
        pool: see `MonotoneConvolutional`.
        classes: see `MonotoneConvolutional`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 56,
        layers: int = 2,
        image: int = 28,
        stride: int = 2,
        pool: int = 7,
        classes: int = 10,
    ):
        """Draws the weights."""
        super().__init__()
        self.classes, self.image, self.stride = classes, image, stride
        _check(self)
        self.inject = injection(in_channels, channels, stride)
        convolutions = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))
        self.body = nn.Sequential(nn.ReLU(), *(module for c in convolutions for module in (c, nn.ReLU())))
        self.head = head(channels, pool, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, in_channels, image, image)`."""
        return self.head(self.body(self.inject(x)))


def injection(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    """A strided convolution whose windows overlap by half."""
    kernel = max(2 * stride - 1, 3)
    return nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2)


def _check(network: MonotoneConvolutional | MonotoneMultitier | PlainConvolutional) -> None:
    divides = network.stride >= 1 and network.image % network.stride == 0
    require(network, "stride", divides, f"a divisor of image={network.image}")
