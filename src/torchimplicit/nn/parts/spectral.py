"""Dense layers and convolutions with spectral normalisation: norms estimated in training, and kept below a bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.nn.utils.parametrize import register_parametrization

from torchimplicit.core.options import is_number, require, require_count

WARM_UP = 20  # power iterations of a new weight

Map = Callable[[Tensor, Tensor], Tensor]  # of a vector or an image, by a weight


class _Normalised(nn.Module):
    """Scales a weight down to a norm of `bound`, by one power iteration a solve from where the last ended."""

    image: Tensor

    def __init__(self, weight: Tensor, bound: float, image: Tensor, there: Map, back: Map):
        super().__init__()
        self.bound, self.there, self.back = bound, there, back
        self.register_buffer("image", image / image.norm())
        self.advance(weight, WARM_UP)

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.advance(weight, 1)
        with torch.autocast(weight.device.type, enabled=False):
            norm = torch.linalg.vector_norm(self.there(self.image.clone(), weight))
        return weight * (self.bound / norm.clamp_min(self.bound))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight that is assigned; above the bound it comes out scaled."""
        self.advance(weight, WARM_UP)
        return weight

    @torch.no_grad()
    def advance(self, weight: Tensor, iterations: int) -> None:
        """Turns the image towards the one that the weight magnifies most."""
        tiny = torch.finfo(weight.dtype).tiny
        with torch.autocast(weight.device.type, enabled=False):
            for _ in range(iterations):
                back = self.back(self.there(self.image, weight), weight)
                size = torch.linalg.vector_norm(back)
                self.image.copy_(torch.where(size > tiny, back / size.clamp_min(tiny), self.image))


def bound_linear(linear: nn.Linear, bound: float) -> None:
    """Keeps the norm of a dense layer's weight at `bound`, about, from now on; see `SpectralLinear`."""
    weight = linear.weight.detach()
    image = torch.randn(weight.shape[1], dtype=weight.dtype, device=weight.device)
    register_parametrization(linear, "weight", _Normalised(weight, bound, image, _apply, _apply_transposed))


def _apply(x: Tensor, weight: Tensor) -> Tensor:
    return weight @ x


def _apply_transposed(y: Tensor, weight: Tensor) -> Tensor:
    return y @ weight


class SpectralLinear(nn.Linear):
    r"""A dense layer whose operator norm is kept at `bound`, about: spectral normalisation, by power iteration.

    The weight is scaled by $\min(1, b / \sigma)$, with $\sigma$ its largest singular value, which one power iteration a
    solve follows while the weight trains (none in `eval`). An estimate from below: right after a large step of the
    optimiser the norm is above the bound; the solver's report says when that mattered. Not for a guarantee
    (`ContractiveLinear`).

    Source: T. Miyato and others, ICLR 2018, arXiv 1802.05957, algorithm 1; scaled down only, never up.

    Args:
        *args: see `torch.nn.Linear`.
        bound: of the operator norm, > 0.
        **options: see `torch.nn.Linear`.

    Raises:
        ValueError: an impossible bound.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> _ = torch.manual_seed(0)
        >>> linear = ti.nn.SpectralLinear(8, 8, bound=0.5)
        >>> linear.weight = torch.randn(8, 8)
        >>> round(torch.linalg.matrix_norm(linear.weight, 2).item(), 2)
        0.5
    """

    def __init__(self, *args: Any, bound: float = 0.95, **options: Any):
        """Starts like `torch.nn.Linear`, scaled."""
        super().__init__(*args, **options)
        self.bound = bound
        require(self, "bound", is_number(bound) and 0 < bound < math.inf, "a finite number > 0")
        bound_linear(self, bound)


def _back(shape: list[int], geometry: dict[str, Any], there: Tensor, weight: Tensor) -> Tensor:
    return conv2d_input(shape, weight, there, **geometry)


class SpectralConv2d(nn.Conv2d):
    r"""A convolution whose operator norm is kept at `bound`, about: spectral normalisation, by power iteration.

    The weight is scaled by $\min(1, b / \sigma)$, with $\sigma$ the norm on zero-padded images of `size` pixels, which
    one power iteration a solve follows while the weight trains (none in `eval`). An estimate from below: right after a
    large step of the optimiser the norm is above the bound. In an equilibrium the solver's report says when that
    mattered. For 32 channels and images of 7 x 7 it costs a fiftieth of `ContractiveConv2d`, whose bound holds at every
    moment.

    Source: T. Miyato and others, ICLR 2018, arXiv 1802.05957; of the convolution itself and not of its kernel as a
    matrix, E. Ryu and others, ICML 2019, arXiv 1905.05406, section 4.

    Args:
        *args: see `torch.nn.Conv2d`; zero padding.
        bound: of the operator norm, > 0.
        size: height and width of the images on which the norm is estimated; larger ones have a slightly larger norm.
        **options: see `torch.nn.Conv2d`.

    Raises:
        ValueError: an impossible bound or size, or another padding.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> _ = torch.manual_seed(0)
        >>> conv = ti.nn.SpectralConv2d(4, 4, 3, padding=1, bound=0.5, size=8)
        >>> conv.weight = torch.randn(4, 4, 3, 3)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> bool((conv(x) - conv(0 * x)).norm() < 0.5 * x.norm())
        True
    """

    def __init__(self, *args: Any, bound: float = 0.95, size: int = 16, **options: Any):
        """Starts like `torch.nn.Conv2d`, scaled."""
        super().__init__(*args, **options)
        self.bound, self.size = bound, size
        require(self, "bound", is_number(bound) and 0 < bound < math.inf, "a finite number > 0")
        require_count(self, "size")
        require(self, "padding_mode", self.padding_mode == "zeros", "'zeros'")
        require(self, "padding", not isinstance(self.padding, str), "numbers of pixels")
        geometry = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}
        weight = self.weight.detach()
        shape = [1, weight.shape[1] * self.groups, size, size]
        image = torch.randn(shape, dtype=weight.dtype, device=weight.device)
        there = partial(nn.functional.conv2d, **geometry)
        register_parametrization(
            self, "weight", _Normalised(weight, bound, image, there, partial(_back, shape, geometry))
        )
