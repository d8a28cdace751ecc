"""Small filters that are learned: what they make of images, and how much longer at most."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchimplicit.core.options import require, require_count

GRID = 16  # frequencies for every tap of a filter, at which the symbol is evaluated
REST = 0.01  # of the differences' size: the other filters that start with them


class Filters(nn.Module):
    r"""Convolutions with learned filters of no mean, as a linear map of images to coefficients, for `Analysis`.

    They start at the differences to the right and downwards, the others near zero: with `Analysis` at total variation,
    anisotropic. Beyond its border an image counts as zero. Channels are images of their own.

    Source: Y. Chen, R. Ranftl, T. Pock, Insights into analysis operator learning, IEEE Trans. Image Process. 23 (2014)
    1060.

    Args:
        filters: how many, >= 2.
        taps: of a filter in each direction, odd.
        seed: of the filters that are no differences.

    Raises:
        ValueError: an option is impossible; when called: images without a height and a width.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import Filters
        >>> Filters(filters=8, taps=3).analyse(torch.rand(2, 16, 16)).shape
        torch.Size([2, 16, 16, 8])
    """

    joint = False

    def __init__(self, filters: int = 16, taps: int = 5, *, seed: int = 0):
        super().__init__()
        self.filters, self.taps = filters, taps
        require_count(self, "taps")
        require_count(self, "filters", least=2)
        require(self, "taps", taps % 2 == 1 and taps > 1, "an odd integer >= 3")
        weight = torch.randn(filters, 1, taps, taps, generator=torch.Generator().manual_seed(seed), device="cpu")
        weight = REST / taps * weight.to(torch.get_default_device())
        middle = taps // 2
        weight[:2] = 0
        weight[:2, 0, middle, middle] = -1
        weight[0, 0, middle, middle + 1] = weight[1, 0, middle + 1, middle] = 1
        self.weight = nn.Parameter(weight)

    @property
    def bound(self) -> Tensor:
        """See `Frame.bound`."""
        return supremum(centred(self.weight))

    def analyse(self, x: Tensor) -> Tensor:
        """See `Frame.analyse`."""
        images = planes("Filters", x)
        c = F.conv2d(images, centred(self.weight).to(images), padding=self.taps // 2).movedim(1, -1)
        return _joined(c, x).reshape(*x.shape, self.filters)

    def adjoint(self, v: Tensor) -> Tensor:
        """See `Frame.adjoint`."""
        c = v.reshape(-1, *v.shape[-3:]).movedim(-1, 1)
        c = torch.cat((c.real, c.imag)) if c.is_complex() else c
        return _joined(transposed(c, centred(self.weight).to(c)), v).reshape(v.shape[:-1])

    def gram(self, x: Tensor) -> Tensor:
        """See `Frame.gram`."""
        return self.adjoint(self.analyse(x))

    def weights(self, like: Tensor) -> Tensor:
        """See `Frame.weights`."""
        return like.real.new_ones(())

    def extra_repr(self) -> str:
        """The sizes, for `print`."""
        return f"filters={self.filters}, taps={self.taps}"


def centred(weight: Tensor) -> Tensor:
    """Filters `(filters, 1, taps, taps)` without their means."""
    return weight - weight.mean((2, 3), keepdim=True)


def transposed(response: Tensor, kernel: Tensor) -> Tensor:
    """The adjoint of the convolution: `F.conv_transpose2d`, which takes four times as long for one output channel."""
    filters, _, taps, _ = kernel.shape
    patches = kernel.reshape(filters, -1).mT @ response.flatten(2)
    return F.fold(patches, response.shape[-2:], taps, padding=taps // 2)


def supremum(kernel: Tensor) -> Tensor:
    r"""An upper bound of $\|W\|^2$ on images of every size, of filters `(filters, 1, taps, taps)`.

    The symbol's square is a trigonometric polynomial of degree `taps - 1` in each direction: its supremum is at most
    its maximum on $N$ points, divided by $\cos(\pi (taps - 1) / N)$ for each direction (L. Pfister, Y. Bresler, arXiv
    1802.04232). 8 % too large at most.
    """
    taps = kernel.shape[-1]
    kernel, points = kernel.movedim(0, 1), GRID * taps
    correlation = F.conv2d(kernel, kernel, padding=taps - 1)  # whose transform is the square of the symbol
    square = torch.fft.rfft2(correlation[0, 0], s=(points, points)).abs().amax()
    return square / math.cos(math.pi * (taps - 1) / points) ** 2


def planes(owner: str, x: Tensor) -> Tensor:
    """Images as planes with one real channel; of complex ones first the real parts, then the imaginary ones."""
    if x.dim() < 3:
        raise ValueError(f"{owner}: got images of shape {tuple(x.shape)}, expected (B, ..., H, W)")
    flat = x.reshape(-1, 1, *x.shape[-2:])
    return torch.cat((flat.real, flat.imag)) if x.is_complex() else flat


def _joined(found: Tensor, like: Tensor) -> Tensor:
    """Real and imaginary parts, first those, then these, where there are both."""
    return torch.complex(*(half.contiguous() for half in found.chunk(2))) if like.is_complex() else found
