r"""Monotone convolutions: with circular borders everything is one small matrix for every frequency.

A circular convolution acts on the Fourier coefficients of an image as a complex matrix `(C, C)` at each frequency, its
symbol; its transpose as the adjoint matrix. So the symbol of $W = (1 - m) I - A^\top A + B - B^\top$, its norm, and the
inverse of $I + \alpha (I - W)$ are batched operations on some dozens of small matrices, once a solve; a step costs a
transform, a product and a transform back.

Source: E. Winston and J. Z. Kolter, Monotone operator equilibrium networks (2020, arXiv 2006.08591), on convolutions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.nn.equilibrium.monotone import part_bounds, require_strength
from torchimplicit.nn.parts.contractive import norm_bound

GRAM = 4  # iterations of the norm's bound: too large by at most channels ** (1 / 32), 13 % for 56


class MonotoneConv(nn.Module):
    r"""The cell $\mathrm{relu}(W z + x)$ on images, with convolutions $A$ and $B$ in $W$ that have circular borders.

    Circular, as in the paper: what leaves on the right comes in on the left. Images with an empty margin mind little.
    $I - W$ is strongly monotone by `strength`; its norm and its resolvent are known through the symbol: see the head of
    this file. For `MonotoneDEQ`; a convolution outside injects the input, once and not once a step.

    An iteration costs about $4 C$ real products an entry of the state, and two transforms; a solve $O(C^3)$ a pixel
    before the first, for symbol and inverse. Not for images of changing size, as the symbol belongs to one.

    Args:
        channels: $C$, of the state.
        size: height and width of the images, or one number for both.
        kernel_size: of `A` and `B`, odd; at most the image's.
        strength: $m$, > 0. Larger ones solve in fewer steps and leave the weights less freedom.
        scale: size of the kernels to start with, > 0.

    Raises:
        ValueError: an option is impossible.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> layer = ti.nn.MonotoneDEQ(ti.nn.MonotoneConv(8, 6), solver=ti.Picard())
        >>> layer(torch.randn(2, 8, 6, 6)).shape, layer.report.converged
        (torch.Size([2, 8, 6, 6]), True)
    """

    symbol: Tensor

    def __init__(
        self,
        channels: int,
        size: int | tuple[int, int],
        kernel_size: int = 3,
        strength: float = 1.0,
        scale: float = 0.5,
    ):
        """Draws the kernels."""
        super().__init__()
        self.channels, self.kernel_size, self.strength, self.scale = channels, kernel_size, strength, scale
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        require_count(self, "channels", "kernel_size")
        require_strength(self)
        require(self, "scale", is_number(scale) and 0 < scale < math.inf, "a finite number > 0")
        require(self, "kernel_size", kernel_size % 2 == 1, "an odd number, so that the kernel has a centre")
        require(self, "size", min(self.size) >= kernel_size, f"an image no smaller than the kernel, {kernel_size}")
        fan_in = channels * kernel_size**2
        self.kernels = nn.Parameter(scale * torch.randn(2, channels, channels, kernel_size, kernel_size) / fan_in**0.5)
        self.register_buffer("symbol", torch.empty(0), persistent=False)
        register_parametrization(self, "symbol", _Symbol(self), unsafe=True)

    def affine(self, z: Tensor, x: Tensor) -> Tensor:
        """`W z + x`, of states and inputs `(B, C, H, W)`."""
        self._check(x)
        return convolve(self.symbol, z) + x

    def prox(self, z: Tensor, step: float) -> Tensor:
        """ReLU, a projection: the same at every step."""
        return z.relu()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The map itself, `(B, C, H, W)`."""
        return self.prox(self.affine(z, x), 1.0)

    def inverse(self, step: float) -> Tensor:
        """The symbol of the inverse of `I + step (I - W)`, `(F, C, C)`."""
        eye = torch.eye(self.channels, dtype=self.symbol.dtype, device=self.symbol.device)
        return torch.linalg.inv((1 + step) * eye - step * self.symbol)

    def resolvent(self, v: Tensor, step: float, x: Tensor, inverse: Tensor) -> Tensor:
        """The `z` with `v = z + step (z - W z - x)`."""
        self._check(x)
        return convolve(inverse, torch.add(v, x, alpha=step))

    @torch.no_grad()
    def bounds(self) -> tuple[float, Tensor]:
        """$m$, and an upper bound of the norm of $I - W$, at most 13 % too large for 56 channels."""
        return self.strength, norm_bound(self._operator(), GRAM).amax()

    @torch.no_grad()
    def parts(self) -> tuple[Tensor, Tensor]:
        """Upper bounds of the norms of the symmetric and the skew part of $I - W$, as tight."""
        symmetric, skew = part_bounds(self._operator(), GRAM)
        return symmetric.amax(), skew.amax()

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"{self.channels}, size={self.size}, kernel_size={self.kernel_size}, strength={self.strength}"

    def _check(self, x: Tensor) -> None:
        """Refuses other images: at some sizes the symbol would fit, and mean another convolution."""
        expected = (self.channels, *self.size)
        if x.dim() != 4 or x.shape[1:] != expected:
            raise ValueError(
                f"MonotoneConv(channels={self.channels}, size={self.size}): got an input of shape {tuple(x.shape)}, "
                f"expected (B, {', '.join(map(str, expected))}); try another size, or crop or pad the images"
            )

    def _operator(self) -> Tensor:
        return torch.eye(self.channels, dtype=self.symbol.dtype, device=self.symbol.device) - self.symbol


class _Symbol(nn.Module):
    """The parametrisation of the symbol of `W` by a cell's kernels; of the cell it registers nothing a second time."""

    def __init__(self, cell: MonotoneConv):
        super().__init__()
        self.cell = (cell,)

    def forward(self, _: Tensor) -> Tensor:
        """From kernels `(2, C, C, k, k)` to `(F, C, C)`, complex."""
        (cell,) = self.cell
        a, b = symbol(cell.kernels[0], cell.size), symbol(cell.kernels[1], cell.size)
        eye = torch.eye(cell.channels, dtype=a.dtype, device=a.device)
        return (1 - cell.strength) * eye - a.mH @ a + b - b.mH


def symbol(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """The symbol of a circular convolution, as `torch.nn.functional.conv2d` with a centred kernel computes it.

    Args:
        kernel: `(C_out, C_in, k, k)`, `k` odd.
        size: height and width of the images.

    Returns:
        `(F, C_out, C_in)`, complex, for the frequencies of `torch.fft.rfft2`, flattened.
    """
    reach = kernel.shape[-1] // 2
    padded = nn.functional.pad(kernel, (0, size[1] - kernel.shape[-1], 0, size[0] - kernel.shape[-2]))
    # conv2d correlates, z(p + d) K(d): the conjugate of a transform.
    transformed = torch.fft.rfft2(padded.roll((-reach, -reach), dims=(-2, -1))).conj()
    return transformed.flatten(2).permute(2, 0, 1).contiguous()


def convolve(symbol: Tensor, z: Tensor) -> Tensor:
    """The circular convolution with this symbol.

    Args:
        symbol: `(F, C_out, C_in)`.
        z: images `(B, C_in, H, W)`.

    Returns:
        `(B, C_out, H, W)`.
    """
    coefficients = torch.fft.rfft2(z)
    height, width = coefficients.shape[-2:]
    product: Any = symbol @ coefficients.flatten(2).permute(2, 1, 0).contiguous()
    return torch.fft.irfft2(product.permute(2, 1, 0).unflatten(2, (height, width)), s=z.shape[-2:])
