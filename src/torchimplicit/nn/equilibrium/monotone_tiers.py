"""A monotone cell of several resolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.options import is_number, require
from torchimplicit.nn.equilibrium.monotone import require_strength
from torchimplicit.nn.equilibrium.monotone_convolution import MonotoneConv, convolve
from torchimplicit.nn.parts.contractive import ContractiveConv2d


class MonotoneTiers(nn.Module):
    r"""Several resolutions: a `MonotoneConv` in each, and strided convolutions from each to the next, coarser one.

    $W$ is block lower triangular: $W_{ii} = (1 - m_i) I - A_i^\top A_i + B_i - B_i^\top$ and $W_{i+1, i} = S_i$, which
    is strided and of norm at most $2 c$. Since $2 c |z_{i+1}| |z_i| \le c |z_{i+1}|^2 + c |z_i|^2$, a tier with $k$
    neighbours that has $m_i = m + k c$ makes good for its part in the coupling, and

    $$ z^\top (I - W) z = \sum_i m_i |z_i|^2 + |A_i z_i|^2 - z_{i+1}^\top S_i z_i \;\ge\; m |z|^2 . $$

    The paper's tiers are lower triangular as well (its multi-tier networks), but make good for the coupling in the
    matrix $A$, across tiers. A plain bound keeps every diagonal block a circular convolution, whose resolvent is exact;
    that of all tiers then is block substitution, from the finest to the coarsest.

    A state is a matrix `(B, n)`, all tiers one after another: `pack` makes the input, `unpack` takes the output apart.
    Not where one resolution suffices: the coupling is bounded, and costs as much as a tier.

    Source: E. Winston and J. Z. Kolter, Monotone operator equilibrium networks (2020, arXiv 2006.08591).

    Args:
        channels: of each tier, finest first.
        size: height and width of the finest, or one number; divisible by `2 ** (tiers - 1)`.
        kernel_size: of all convolutions, odd; at most the coarsest image's.
        strength: $m$, > 0.
        coupling: $c$, > 0.
        scale: size of the kernels to start with, > 0.

    Raises:
        ValueError: an option is impossible.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> cell = ti.nn.MonotoneTiers((4, 8), size=6)
        >>> layer = ti.nn.MonotoneDEQ(cell, solver=ti.Picard())
        >>> z = layer(cell.pack([torch.randn(2, 4, 6, 6), torch.randn(2, 8, 3, 3)]))
        >>> [tuple(tier.shape) for tier in cell.unpack(z)]
        [(2, 4, 6, 6), (2, 8, 3, 3)]
    """

    def __init__(
        self,
        channels: Sequence[int],
        size: int | tuple[int, int],
        kernel_size: int = 3,
        strength: float = 1.0,
        coupling: float = 0.5,
        scale: float = 0.5,
    ):
        """Draws the kernels."""
        super().__init__()
        self.channels, self.strength, self.coupling = tuple(channels), strength, coupling
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        require(self, "channels", bool(self.channels), "at least one tier")
        require_strength(self)
        require(self, "coupling", is_number(coupling) and 0 < coupling < math.inf, "a finite number > 0")
        last = len(self.channels) - 1
        require(
            self, "size", all(n % 2**last == 0 for n in self.size), f"numbers divisible by {2**last}, for the tiers"
        )
        height, width = self.size
        neighbours = [(i > 0) + (i < last) for i in range(last + 1)]
        self.tiers = nn.ModuleList(
            MonotoneConv(count, (height // 2**i, width // 2**i), kernel_size, strength + k * coupling, scale)
            for i, (count, k) in enumerate(zip(self.channels, neighbours, strict=True))
        )
        options: dict[str, Any] = {"padding": kernel_size // 2, "padding_mode": "circular", "bias": False}
        self.down = nn.ModuleList(
            ContractiveConv2d(fine, coarse, kernel_size, stride=2, bound=2 * coupling, **options)
            for fine, coarse in zip(self.channels, self.channels[1:], strict=False)
        )

    def pack(self, tiers: Sequence[Tensor]) -> Tensor:
        """`(B, n)` from one tensor `(B, C_i, H_i, W_i)` a tier."""
        shapes = [tuple(tier.shape[1:]) for tier in tiers]
        if shapes != self._shapes():
            raise ValueError(f"MonotoneTiers.pack(tiers): got images of {shapes}, expected {self._shapes()}")
        return torch.cat([tier.flatten(1) for tier in tiers], dim=1)

    def unpack(self, z: Tensor) -> list[Tensor]:
        """One tensor `(B, C_i, H_i, W_i)` a tier from `(B, n)`."""
        shapes = self._shapes()
        width = sum(map(math.prod, shapes))
        if z.dim() != 2 or z.shape[1] != width:
            raise ValueError(f"MonotoneTiers: got a state of shape {tuple(z.shape)}, expected (B, {width}); see pack")
        parts = z.split([math.prod(shape) for shape in shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def affine(self, z: Tensor, x: Tensor) -> Tensor:
        """`W z + x`, of states and inputs `(B, n)`."""
        states, inputs = self.unpack(z), self.unpack(x)
        told = [inputs[0], *(down(z) + x for down, z, x in zip(self.down, states, inputs[1:], strict=False))]
        return self.pack([self._tier(i).affine(z, x) for i, (z, x) in enumerate(zip(states, told, strict=True))])

    def prox(self, z: Tensor, step: float) -> Tensor:
        """ReLU, a projection: the same at every step."""
        return z.relu()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The map itself, `(B, n)`."""
        return self.prox(self.affine(z, x), 1.0)

    def inverse(self, step: float) -> Tensor:
        """The symbols of the tiers' inverses, one after another."""
        return torch.cat([self._tier(i).inverse(step).flatten() for i in range(len(self.tiers))])

    def resolvent(self, v: Tensor, step: float, x: Tensor, inverse: Tensor) -> Tensor:
        """The `z` with `v = z + step (z - W z - x)`, by block substitution."""
        right, found = self.unpack(torch.add(v, x, alpha=step)), []
        symbols = inverse.split([c * c * h * (w // 2 + 1) for c, h, w in self._shapes()])
        for i, (flat, c) in enumerate(zip(symbols, self.channels, strict=True)):
            told = torch.add(right[i], self.down[i - 1](found[-1]), alpha=step) if found else right[i]
            found.append(convolve(flat.view(-1, c, c), told))
        return self.pack(found)

    @torch.no_grad()
    def bounds(self) -> tuple[float, Tensor]:
        """$m$, and an upper bound of the norm of $I - W$: the norm of the matrix of the blocks' norms."""
        norms = [self._tier(i).bounds()[1] for i in range(len(self.tiers))]
        return self.strength, _block_norm(norms, below=2 * self.coupling)

    @torch.no_grad()
    def parts(self) -> tuple[Tensor, Tensor]:
        """Upper bounds of the norms of the symmetric and the skew part of $I - W$, in the same way."""
        both = zip(*(self._tier(i).parts() for i in range(len(self.tiers))), strict=True)
        symmetric, skew = (_block_norm(norms, self.coupling, self.coupling) for norms in both)
        return symmetric, skew

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"{self.channels}, size={self.size}, strength={self.strength}, coupling={self.coupling}"

    def _tier(self, i: int) -> MonotoneConv:
        tier = self.tiers[i]
        assert isinstance(tier, MonotoneConv)
        return tier

    def _shapes(self) -> list[tuple[int, int, int]]:
        return [(tier.channels, *tier.size) for tier in map(self._tier, range(len(self.tiers)))]


def _block_norm(norms: Sequence[Tensor], below: float, above: float = 0.0) -> Tensor:
    """The norm of the matrix of the tiers' norms, with those of the couplings beside its diagonal."""
    table = torch.diag(torch.tensor([float(norm) for norm in norms], dtype=torch.float64, device="cpu"))
    beside = torch.ones(len(norms) - 1, dtype=torch.float64, device="cpu")
    return torch.linalg.matrix_norm(table + below * beside.diag(-1) + above * beside.diag(1), 2)
