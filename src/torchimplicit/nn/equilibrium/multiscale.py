"""The multiscale deep equilibrium model: one equilibrium of images at several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core.options import is_count, require, require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.nn.cells.residual_block import ResidualCell
from torchimplicit.nn.equilibrium.deq import DEQ
from torchimplicit.solve import Anderson, Solver

States = tuple[Tensor, ...]  # (B, channels[i], H_i, W_i), every H_i half of the one before, rounded up

STATE, OWN = 0.5, 0.1  # at first: size of a state, and of what a lower resolution adds to itself


class MultiscaleCell(nn.Module):
    r"""Residual blocks at several resolutions, and their fusion: the cell of the multiscale equilibrium model.

    The state is a tuple, one image a resolution, each half as high and wide as the one before, rounded up:

    $$y_i = R_i(z_i, x \text{ if } i = 0 \text{ else } 0), \qquad
      f_i(z, x) = N_i\Big(y_i + \sum_{j \ne i} T_{ij}\, y_j\Big)$$

    with a `ResidualCell` $R_i$ and a group norm $N_i$ for every resolution. $T_{ij}$ brings resolution $j$ to $i$:
    downwards a 3 x 3 convolution of stride two for every halving, with ReLU between; upwards a 1 x 1 convolution, then
    the nearest pixel. All resolutions are solved as one state: a sample has converged when the residual of all of them
    together is small. The last group norms bound the state, whatever the weights before them; nothing keeps the map a
    contraction while it trains, so watch the reports, and train it with `jacobian_penalty`.

    Against the paper: neither ReLU nor 1 x 1 convolution after the fusion, group norms only at the ends of the sums,
    and no dropout (`VariationalDropout2d`). Not for images of one scale, where `ResidualCell` is cheaper.

    Source: S. Bai, V. Koltun, J. Z. Kolter, NeurIPS 2020, arXiv 2006.08656, section 3.

    Args:
        channels: of every resolution, from the finest on.
        groups: of the norms; divides all channels.
        expansion: channels inside a block, as a multiple of those of its resolution.
        normalise: weight normalisation of all convolutions, computed once a solve.

    Raises:
        ValueError: a number is impossible, or no group norm fits.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> cell = ti.nn.MultiscaleCell((8, 16), groups=4)
        >>> layer = ti.nn.DEQ(cell, solver=ti.Anderson(rtol=1e-3), init=cell.start)
        >>> [tuple(z.shape) for z in layer(torch.randn(2, 8, 12, 9))], layer.report.converged
        ([(2, 8, 12, 9), (2, 16, 6, 5)], True)
    """

    def __init__(
        self, channels: Sequence[int] = (24, 48, 96), groups: int = 8, expansion: int = 1, normalise: bool = False
    ):
        """Draws the weights."""
        super().__init__()
        self.channels, self.groups, self.expansion = tuple(channels), groups, expansion
        require_count(self, "groups", "expansion")
        _require_channels(self)
        fits = all(count % groups == 0 for count in self.channels)
        require(self, "channels", fits, f"multiples of groups={groups}, for the group norms")
        self.blocks = nn.ModuleList(
            ResidualCell(count, expansion * count, groups, floor=1e-5) for count in self.channels
        )
        self.fusion = Fusion(self.channels)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, count) for count in self.channels)
        self._begin_contracting()
        for module in list(self.modules()) if normalise else ():
            if isinstance(module, nn.Conv2d):
                weight_norm(module)

    def forward(self, state: States, x: Tensor) -> States:
        """The next state, a tuple `(B, channels[i], H_i, W_i)`, from one and the input `(B, channels[0], H, W)`."""
        nothing = x.new_zeros(())
        injected = (x, *(nothing for _ in state[1:]))
        parts = [block(z, u) for block, z, u in zip(self.blocks, state, injected, strict=True)]
        return tuple(norm(y) for norm, y in zip(self.norms, self.fusion(parts), strict=True))

    def start(self, x: Tensor) -> States:
        """Where a solve begins: zeros at all resolutions. For `DEQ(cell, init=cell.start)`.

        Raises:
            ValueError: the input has another number of channels, or is too small to be halved so often.
        """
        least = 2 ** (len(self.channels) - 1)
        if x.dim() != 4 or x.shape[1] != self.channels[0] or min(x.shape[2:]) < least:
            raise ValueError(
                f"MultiscaleCell(channels={self.channels}): got an input of shape {tuple(x.shape)}, expected (B, "
                f"{self.channels[0]}, H, W) with H and W >= {least}, any number: the {len(self.channels)} resolutions "
                "halve it. Try larger images, a stem with less stride, or fewer resolutions."
            )
        height, width = x.shape[2:]
        states, dtype = [], self._dtype()  # the weights', for it is a sum of many steps, also under autocast
        for count in self.channels:
            states.append(x.new_zeros(len(x), count, height, width, dtype=dtype))
            height, width = (height + 1) // 2, (width + 1) // 2
        return tuple(states)

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _begin_contracting(self) -> None:
        """Small states, and the lower resolutions driven by the top one, which alone knows the input.

        A resolution that sees little but itself is a map from one direction to the next, which norms expand.
        """
        for scale, (block, norm) in enumerate(zip(self.blocks, self.norms, strict=True)):
            nn.init.constant_(norm.weight, STATE)  # type: ignore[arg-type]
            if scale:
                nn.init.constant_(block.norm3.weight, OWN)  # type: ignore[arg-type,union-attr]


class Fusion(nn.Module):
    """Adds to the image of every resolution those of all others, brought to its size and channels.

    Args:
        channels: of every resolution, from the finest on.
    """

    def __init__(self, channels: Sequence[int]):
        """Draws the weights, small ones on the way up."""
        super().__init__()
        self.paths = nn.ModuleList(
            nn.ModuleList(_path(channels, source, target) for source in range(len(channels)))
            for target in range(len(channels))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
                nn.init.normal_(module.weight, std=0.01)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        """One image a resolution, from one a resolution."""
        fused = []
        for paths, target in zip(self.paths, images, strict=True):
            total = target
            for path, image in zip(paths, images, strict=True):  # type: ignore[call-overload]
                if image is not target:
                    moved = path(image)
                    if moved.shape[2:] != target.shape[2:]:
                        moved = F.interpolate(moved, target.shape[2:])  # the nearest pixel, whatever the sizes
                    total = total + moved
            fused.append(total)
        return fused


class MDEQ(nn.Module):
    """Images to features at several resolutions: strided convolutions, then the equilibrium of a `MultiscaleCell`.

    The backbone of the multiscale equilibrium model; a head reads all resolutions, see `ClassificationHead` and
    `SegmentationHead`.

    Source: S. Bai, V. Koltun, J. Z. Kolter, NeurIPS 2020, arXiv 2006.08656.

    Args:
        in_channels: of the images.
        channels: of every resolution, from the finest on.
        groups: of the group norms; divides all channels.
        expansion: see `MultiscaleCell`.
        normalise: see `MultiscaleCell`.
        strides: of the 3 x 3 convolutions before the equilibrium, one each.
        solver: finds the equilibrium.
        adjoint: differentiates it.
        warm_start: see `DEQ`.
        on_failure: see `DEQ`.

    Raises:
        ValueError: a number is impossible.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> model = ti.nn.MDEQ(in_channels=1, channels=(8, 16), groups=4, strides=(2,))
        >>> [tuple(z.shape) for z in model(torch.randn(2, 1, 16, 16))]
        [(2, 8, 8, 8), (2, 16, 4, 4)]
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (24, 48, 96),
        groups: int = 8,
        expansion: int = 1,
        normalise: bool = False,
        strides: Sequence[int] = (2,),
        solver: Solver = Anderson(rtol=1e-2),
        adjoint: Adjoint = Implicit(),
        warm_start: bool = False,
        on_failure: OnFailure = "warn",
    ):
        """Draws the weights."""
        super().__init__()
        cell = MultiscaleCell(channels, groups, expansion, normalise)
        self.channels = cell.channels
        self.stem = ConvolutionalStem(in_channels, self.channels[0], groups, strides)
        self.equilibrium = DEQ(
            cell, solver, adjoint, init=cell.start, warm_start=warm_start, batched_args=(0,), on_failure=on_failure
        )

    def forward(self, x: Tensor) -> States:
        """The equilibrium, a tuple `(B, channels[i], H_i, W_i)`, of images `(B, in_channels, H, W)`."""
        return self.equilibrium(self.stem(x))


class ConvolutionalStem(nn.Sequential):
    """Strided 3 x 3 convolutions, each with a group norm, with ReLU between: what the equilibrium is injected with.

    Args:
        in_channels: of the images.
        channels: of the result.
        groups: of the norms; divides the channels.
        strides: of the convolutions, one each.

    Raises:
        ValueError: a number is impossible, or no group norm fits.
    """

    def __init__(self, in_channels: int, channels: int, groups: int = 8, strides: Sequence[int] = (2,)):
        """Draws the weights."""
        super().__init__()
        self.in_channels, self.strides = in_channels, tuple(strides)
        self.channels, self.groups = channels, groups
        require_count(self, "in_channels", "channels", "groups")
        require(self, "channels", channels % groups == 0, f"a multiple of groups={groups}, for the group norms")
        counts = all(map(is_count, self.strides))
        require(self, "strides", bool(self.strides) and counts, "one integer >= 1 or more")
        for number, stride in enumerate(self.strides):
            if number:
                self.append(nn.ReLU())
            self.append(nn.Conv2d(channels if number else in_channels, channels, 3, stride, padding=1))
            self.append(nn.GroupNorm(groups, channels))


def _path(channels: Sequence[int], source: int, target: int) -> nn.Module:
    """From one resolution to another, but for the interpolation."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Conv2d(channels[source], channels[target], 1, bias=False)
    path = nn.Sequential()
    for scale in range(source, target):
        if scale > source:
            path.append(nn.ReLU())
        path.append(nn.Conv2d(channels[scale], channels[scale + 1], 3, stride=2, padding=1, bias=False))
    return path


def _require_channels(cell: MultiscaleCell) -> None:
    counts = all(map(is_count, cell.channels))
    require(cell, "channels", bool(cell.channels) and counts, "one integer >= 1 a resolution, one resolution or more")
