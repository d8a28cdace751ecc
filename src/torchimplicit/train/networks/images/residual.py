"""Convolutional networks for images: a residual block's equilibrium, and residual blocks one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core.options import require, require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import DEQ, ResidualCell, SpectralCell
from torchimplicit.solve import Anderson, Solver
from torchimplicit.train.networks.parts import ResidualBlock, head, stem


class ConvolutionalDEQ(nn.Module):
    """Images to classes: strided convolutions, the equilibrium of a residual block, a dense layer.

    Source: Z. Kolter, D. Duvenaud, M. Johnson, Deep Implicit Layers, NeurIPS 2020 tutorial, chapter 4, with group norms
    for its batch norms, so that samples stay independent, and with strides, so that it runs on a CPU.

    Args:
        in_channels: 1 for grey images, 3 for coloured ones.
        channels: of the equilibrium.
        inner: channels inside its cell.
        groups: of the group norms.
        strides: of the convolutions before the equilibrium, one each: `(1,)` keeps the size, `(2, 2)` quarters it.
        pool: the image that the dense layer sees is averaged to `pool x pool`.
        classes: number of classes.
        cell: "residual" for `ResidualCell`; "spectral" for `SpectralCell`, which contracts, is started at the
            injection, and normalised before the dense layer.
        bound: of the convolutions of `SpectralCell`.
        image: height and width of the images, for `SpectralCell`.
        solver: finds the equilibrium.
        adjoint: differentiates it.
        warm_start: starts from the last batch's equilibrium where the shapes agree.
        on_failure: of the layer. "ignore", as `Classifier` counts what does not converge and says so once an epoch.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 48,
        inner: int = 64,
        groups: int = 8,
        strides: Sequence[int] = (1,),
        pool: int = 4,
        classes: int = 10,
        cell: Literal["residual", "spectral"] = "residual",
        bound: float = 0.95,
        image: int = 28,
        solver: Solver = Anderson(rtol=1e-2),
        adjoint: Adjoint = Implicit(),
        warm_start: bool = False,
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.classes, self.pool, self.strides, self.cell = classes, pool, tuple(strides), cell
        _check(self)
        require(self, "cell", cell in ("residual", "spectral"), "'residual' or 'spectral'")
        contracts = cell == "spectral"
        block = (
            SpectralCell(channels, inner, bound, image // math.prod(self.strides))
            if contracts
            else ResidualCell(channels, inner, groups, floor=1e-5)  # the paper's: trained with a penalty
        )
        init, norm = (_injection, nn.GroupNorm(groups, channels)) if contracts else (None, nn.Identity())
        self.stem = stem(in_channels, channels, groups, self.strides)
        self.equilibrium = DEQ(block, solver, adjoint, init, warm_start=warm_start, on_failure=on_failure)
        self.norm, self.head = norm, head(channels, pool, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, in_channels, H, W)`."""
        return self.head(self.norm(self.equilibrium(self.stem(x))))


class ResidualNetwork(nn.Module):
    """The explicit rival of `ConvolutionalDEQ`: the same stem and head, residual blocks with weights of their own.

    Source of the blocks: K. He, X. Zhang, S. Ren, J. Sun, CVPR 2016, arXiv 1512.03385, with group norms.

    Args:
        in_channels: see `ConvolutionalDEQ`.
        channels: of the blocks.
        blocks: how many.
        groups: see `ConvolutionalDEQ`.
        strides: see `ConvolutionalDEQ`.
        pool: see `ConvolutionalDEQ`.
        classes: see `ConvolutionalDEQ`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 32,
        blocks: int = 3,
        groups: int = 8,
        strides: Sequence[int] = (1,),
        pool: int = 4,
        classes: int = 10,
    ):
        """Draws the weights."""
        super().__init__()
        self.classes, self.pool, self.strides = classes, pool, tuple(strides)
        self.channels, self.blocks = channels, blocks
        _check(self)
        require(self, "channels", channels % groups == 0, f"a multiple of groups={groups}, for the group norms")
        require_count(self, "blocks")
        self.stem = stem(in_channels, channels, groups, self.strides)
        self.body = nn.Sequential(*(ResidualBlock(channels, groups) for _ in range(blocks)))
        self.head = head(channels, pool, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, in_channels, H, W)`."""
        return self.head(self.body(self.stem(x)))


def _injection(x: Tensor) -> Tensor:
    """Where the solve starts: at what is injected."""
    return x.detach()


def _check(network: ConvolutionalDEQ | ResidualNetwork) -> None:
    strides = network.strides
    require(
        network, "strides", bool(strides) and all(stride in (1, 2) for stride in strides), "a list of ones and twos"
    )
    require_count(network, "pool")
