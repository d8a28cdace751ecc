"""Dropout that leaves a fixed point to be found: one mask a solve."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchimplicit.core import transforms
from torchimplicit.core.options import require

KEPT = 4  # masks that a module remembers: of the solves that still wait for their backward pass


class VariationalDropout(nn.Module):
    """Dropout whose mask is drawn once a solve and is the same at every evaluation, in the backward pass, too.

    Plain dropout inside a cell is another map at every evaluation, which has no fixed point. Here a front door
    (`fixed_point`, `root`, `argmin`, `nn.DEQ`) draws a new seed when a solve begins, from torch's generator, and the
    mask follows from seed, shape, dtype and device. The seed belongs to the solve: its backward pass sees the same mask
    even when the module has been solved again in between. Called by itself the module keeps the mask of the last
    solve; `begin_solve()` draws another. The identity in `eval()` mode. Not under `torch.vmap` over random masks: torch
    refuses that.

    Source: Y. Gal, Z. Ghahramani, NeurIPS 2016, arXiv 1512.05287; in equilibrium models S. Bai, J. Z. Kolter,
    V. Koltun, NeurIPS 2019, arXiv 1909.01377.

    Args:
        p: probability of an element to be zeroed, in [0, 1); the others are scaled by `1 / (1 - p)`.
        shared: dimensions along which the mask is the same; `(1,)` is one for all steps of a sequence `(B, T, C)`.

    Example:
        >>> import torch, torchimplicit as ti
        >>> class Cell(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear, self.dropout = torch.nn.Linear(8, 8), ti.nn.VariationalDropout(0.2)
        ...     def forward(self, z, x):
        ...         return self.dropout(torch.tanh(self.linear(z) + x))
        >>> layer = ti.nn.DEQ(Cell())
        >>> layer(torch.randn(4, 8)).shape, layer.report.converged
        (torch.Size([4, 8]), True)
    """

    seed: Tensor

    def __init__(self, p: float = 0.5, shared: tuple[int, ...] = ()):
        """Draws no mask yet."""
        super().__init__()
        self.p, self.shared = p, shared
        require(self, "p", 0 <= p < 1, "a probability in [0, 1)")
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64), persistent=False)
        self._masks: dict[tuple, tuple[Tensor, Tensor]] = {}

    def begin_solve(self) -> None:
        """A new seed, and with it a new mask; the solve before keeps its own."""
        self.seed = torch.randint(2**62, (), device=self.seed.device)

    def forward(self, x: Tensor) -> Tensor:
        """`x` times the mask, of the same shape and dtype."""
        return x * self._mask(x) if self.training and self.p > 0 else x

    def _mask(self, x: Tensor) -> Tensor:
        shape = self._mask_shape(x)
        # A solve's seeds are views of one tensor. It is kept beside the mask, so its address is nobody else's.
        place = int(self.seed) if transforms.level(self.seed) >= 0 else self.seed.data_ptr()
        key = (place, transforms.version(self.seed), shape, x.dtype, x.device)
        if key not in self._masks:
            generator = torch.Generator(x.device).manual_seed(int(self.seed))
            with torch.no_grad():
                mask = torch.empty(shape, dtype=x.dtype.to_real(), device=x.device)
                mask.bernoulli_(1 - self.p, generator=generator).div_(1 - self.p)
            self._masks[key] = mask, self.seed
            while len(self._masks) > KEPT:
                del self._masks[next(iter(self._masks))]
        return self._masks[key][0]

    def _mask_shape(self, x: Tensor) -> tuple[int, ...]:
        shared = {dim % x.dim() for dim in self.shared}
        return tuple(1 if dim in shared else size for dim, size in enumerate(x.shape))

    def __getstate__(self) -> dict:
        """Travels without masks: they follow from the seed."""
        return {**self.__dict__, "_masks": {}}

    def extra_repr(self) -> str:
        """The options, for `print(module)`."""
        return f"p={self.p}" + (f", shared={self.shared}" if self.shared else "")


class _Channelwise(VariationalDropout):
    dims: int

    def __init__(self, p: float = 0.5):
        """Draws no mask yet."""
        super().__init__(p)

    def _mask_shape(self, x: Tensor) -> tuple[int, ...]:
        if x.dim() != self.dims + 2:
            layout = ", ".join(["B", "C", *"DHW"[-self.dims :]]) if self.dims > 1 else "B, C, L"
            raise ValueError(
                f"{type(self).__name__}: got shape {tuple(x.shape)}, expected ({layout}); try VariationalDropout(p, "
                "shared=...) for other layouts"
            )
        return (*x.shape[:2], *(1 for _ in range(self.dims)))


class VariationalDropout1d(_Channelwise):
    """Drops whole channels of `(B, C, L)`, one mask a solve; see `VariationalDropout`.

    Args:
        p: probability of a channel to be zeroed, in [0, 1).
    """

    dims = 1


class VariationalDropout2d(_Channelwise):
    """Drops whole channels of `(B, C, H, W)`, one mask a solve; see `VariationalDropout`.

    Args:
        p: probability of a channel to be zeroed, in [0, 1).
    """

    dims = 2


class VariationalDropout3d(_Channelwise):
    """Drops whole channels of `(B, C, D, H, W)`, one mask a solve; see `VariationalDropout`.

    Args:
        p: probability of a channel to be zeroed, in [0, 1).
    """

    dims = 3
