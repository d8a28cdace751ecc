r"""Monotone convolutions: with circular borders everything is one small matrix for every frequency.

A circular convolution acts on the Fourier coefficients of an image as a complex matrix `(C, C)` at each frequency, its
symbol; a transposed one as the adjoint matrix. So the symbol of $W = (1 - m) I - A^\top A + B - B^\top$, its norm, and
the inverse of $I + \alpha (I - W)$ are batched operations on some dozens of small matrices, once a solve; a step costs
a transform, a product and a transform back.

Source: E. Winston and J. Z. Kolter (2020, arXiv 2006.08591), section 4 and appendix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from torchimplicit.core.options import require
from torchimplicit.nn.contractive import norm_bound
from torchimplicit.nn.monotone import require_count, require_strength

GRAM = 4  # iterations of the norm's bound: too large by at most channels ** (1 / 32), 13 % for 56


class MonotoneSymbol(nn.Module):
    """Parametrises the symbol of `W` by the kernels of `A` and `B`.

    Args:
        strength: $m$.
        size: height and width of the images.
    """

    def __init__(self, strength: float, size: tuple[int, int]):
        super().__init__()
        self.strength, self.size = strength, size

    def forward(self, kernels: Tensor) -> Tensor:
        """From `(2, C, C, k, k)` to `(F, C, C)`, complex."""
        a, b = symbol(kernels[0], self.size), symbol(kernels[1], self.size)
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        return (1 - self.strength) * eye - a.mH @ a + b - b.mH


class MonotoneConv(nn.Module):
    r"""The cell $\mathrm{relu}(W z + x)$ on images, $A$ and $B$ in $W$ convolutions with circular borders.

    Circular, as in the paper: what leaves on the right comes in on the left. An image with a margin around it minds
    little; one without, more. $I - W$ is strongly monotone by `strength`; its norm and its resolvent are known through
    the symbol: see the module's head. For `MonotoneDEQ`; the input is injected by a convolution outside.

    An iteration costs $4 C^2$ real products a pixel, and two transforms. Not for images of changing size, as the symbol
    belongs to one; nor for thousands of channels.

    Args:
        channels: $C$, of the state.
        size: height and width of the images, or one number for both.
        kernel_size: of `A` and `B`, odd; at most the image's.
        strength: $m$, > 0. Larger ones solve in fewer steps and leave the weights less freedom.
        scale: size of the kernels to start with, > 0; 1 makes the norm of `A` about two.

    Raises:
        ValueError: an option is impossible.

    Example:
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
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        require_count(self, "channels")
        require_strength(self)
        require(self, "scale", 0 < scale < math.inf, "a finite number > 0")
        _require_kernel(self, [self.size])
        self.symbol = nn.Parameter(_kernels(2, channels, channels, kernel_size, scale=scale))
        register_parametrization(self, "symbol", MonotoneSymbol(strength, self.size), unsafe=True)

    def affine(self, z: Tensor, x: Tensor) -> Tensor:
        """`W z + x`, of states and inputs `(B, C, H, W)`."""
        return convolve(self.symbol, z) + x

    def prox(self, z: Tensor, step: float) -> Tensor:
        """ReLU, a projection: the same at every step."""
        return z.relu()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The map itself, `(B, C, H, W)`."""
        return self.prox(self.affine(z, x), 1.0)

    def inverse(self, step: float) -> Tensor:
        """The symbol of the inverse of `I + step (I - W)`, `(F, C, C)`."""
        return inverse_symbol(self.symbol, step)

    def resolvent(self, v: Tensor, step: float, x: Tensor, inverse: Tensor) -> Tensor:
        """The `z` with `v = z + step (z - W z - x)`."""
        return convolve(inverse, torch.add(v, x, alpha=step))

    def bounds(self) -> tuple[float, Tensor]:
        """$m$, and an upper bound of the norm of $I - W$."""
        return self.strength, operator_bound(self.symbol)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"{self.channels}, size={self.size}, kernel_size={self.kernel_size}, strength={self.strength}"


class MonotoneTiers(nn.Module):
    r"""Several resolutions: a `MonotoneConv` in each, and strided convolutions from each to the next, coarser one.

    $W$ is block lower triangular: the diagonal blocks are $W_i = (1 - m_i) I - A_i^\top A_i + B_i - B_i^\top$, the ones
    below $W_{i+1, i} = 2 A_{i+1}^\top S_i$ with a strided convolution $S_i$ of norm at most $c$. With $m_i = m + c^2$,
    but $m$ for the last tier,

    $$ z^\top (I - W) z = \sum_i m_i |z_i|^2 + |A_i z_i|^2 - 2 (A_{i+1} z_{i+1})^\top S_i z_i \;\ge\; m |z|^2 :$$

    a tier pays in its own contraction for what it says to the next. The paper has tiers of this triangular form, too;
    bounding $S_i$ keeps each diagonal block a circular convolution, so that its resolvent is exact, tier by tier from
    the finest: block substitution.

    A state is a matrix `(B, n)`, all tiers one after another: `pack` makes the input, `unpack` takes the output apart.

    Args:
        channels: of each tier, finest first.
        size: height and width of the finest, or one number; divisible by `2 ** (tiers - 1)`.
        kernel_size: of all convolutions, odd; at most the coarsest image.
        strength: $m$, > 0.
        coupling: $c$, > 0.
        scale: size of the kernels to start with, > 0.

    Raises:
        ValueError: an option is impossible.

    Example:
        >>> import torch, torchimplicit as ti
        >>> cell = ti.nn.MonotoneTiers((4, 8), size=6)
        >>> layer = ti.nn.MonotoneDEQ(cell, solver=ti.Picard())
        >>> z = layer(cell.pack([torch.randn(2, 4, 6, 6), torch.randn(2, 8, 3, 3)]))
        >>> [tier.shape for tier in cell.unpack(z)]
        [torch.Size([2, 4, 6, 6]), torch.Size([2, 8, 3, 3])]
    """

    def __init__(
        self,
        channels: Sequence[int],
        size: int | tuple[int, int],
        kernel_size: int = 3,
        strength: float = 1.0,
        coupling: float = 1.0,
        scale: float = 0.5,
    ):
        """Draws the kernels."""
        super().__init__()
        self.channels, self.kernel_size = tuple(channels), kernel_size
        self.strength, self.coupling, self.scale = strength, coupling, scale
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        require(self, "channels", bool(self.channels), "at least one tier")
        require_strength(self)
        require(self, "coupling", 0 < coupling < math.inf, "a finite number > 0")
        factor = 2 ** (len(self.channels) - 1)
        require(self, "size", all(n % factor == 0 for n in self.size), f"numbers divisible by {factor}, for the tiers")
        height, width = self.size
        sizes = [(height // 2**i, width // 2**i) for i in range(len(self.channels))]
        _require_kernel(self, sizes)
        paid = [strength + coupling**2] * (len(sizes) - 1) + [strength]
        shapes = zip(self.channels, sizes, paid, strict=True)
        self.tiers = nn.ModuleList(MonotoneConv(c, s, kernel_size, m, scale) for c, s, m in shapes)
        self.down = nn.ModuleList(Coupling(self, i) for i in range(len(sizes) - 1))

    def pack(self, tiers: Sequence[Tensor]) -> Tensor:
        """`(B, n)` from one tensor `(B, C_i, H_i, W_i)` a tier."""
        shapes = [tuple(tier.shape[1:]) for tier in tiers]
        if shapes != self._shapes():
            raise ValueError(f"MonotoneTiers.pack(tiers): got images of {shapes}, expected {self._shapes()}")
        return torch.cat([tier.flatten(1) for tier in tiers], dim=1)

    def unpack(self, z: Tensor) -> list[Tensor]:
        """One tensor `(B, C_i, H_i, W_i)` a tier from `(B, n)`."""
        shapes = self._shapes()
        parts = z.split([math.prod(shape) for shape in shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def affine(self, z: Tensor, x: Tensor) -> Tensor:
        """`W z + x`, of states and inputs `(B, n)`."""
        states, inputs, out = self.unpack(z), self.unpack(x), []
        for i, tier in enumerate(self.tiers):
            told = self.down[i - 1](states[i - 1]) + inputs[i] if i else inputs[i]
            out.append(tier.affine(states[i], told))  # type: ignore[operator]
        return self.pack(out)

    def prox(self, z: Tensor, step: float) -> Tensor:
        """ReLU, a projection: the same at every step."""
        return z.relu()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The map itself, `(B, n)`."""
        return self.prox(self.affine(z, x), 1.0)

    def inverse(self, step: float) -> Tensor:
        """The symbols of the tiers' inverses, one after another."""
        return torch.cat([tier.inverse(step).flatten() for tier in self.tiers])  # type: ignore[operator]

    def resolvent(self, v: Tensor, step: float, x: Tensor, inverse: Tensor) -> Tensor:
        """The `z` with `v = z + step (z - W z - x)`, by block substitution."""
        right, out = self.unpack(torch.add(v, x, alpha=step)), []
        symbols = inverse.split([_entries(tier) for tier in self.tiers])
        for i, (tier, flat) in enumerate(zip(self.tiers, symbols, strict=True)):
            told = right[i] + step * self.down[i - 1](out[i - 1]) if i else right[i]
            out.append(convolve(flat.view(-1, self.channels[i], self.channels[i]), told))
        return self.pack(out)

    def bounds(self) -> tuple[float, Tensor]:
        """$m$, and an upper bound of the norm of $I - W$: the norm of the blocks' norms."""
        table = torch.zeros(len(self.tiers), len(self.tiers), dtype=torch.float64)
        for i, tier in enumerate(self.tiers):
            table[i, i] = operator_bound(tier.symbol)  # type: ignore[arg-type]
            if i:
                table[i, i - 1] = self.down[i - 1].bound()  # type: ignore[operator]
        return self.strength, torch.linalg.matrix_norm(table, 2)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"{self.channels}, size={self.size}, strength={self.strength}, coupling={self.coupling}"

    def _shapes(self) -> list[tuple[int, int, int]]:
        return [(tier.channels, *tier.size) for tier in self.tiers]  # type: ignore[misc]
