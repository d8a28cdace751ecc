"""Dropout that leaves a fixed point to be found: one mask a solve."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core import transforms
from torchimplicit.core.explicit import is_captured
from torchimplicit.core.options import is_number, require
from torchimplicit.core.status import CaptureError

KEPT = 4  # masks that a module remembers, by their seed and shape


def uniform(seed: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers in [0, 1), float64, that follow from the seed alone: the same on every device, and under `torch.vmap`.

    The n-th number of SplitMix64 started at `seed` (G. Steele, D. Lea, C. Flood, OOPSLA 2014). Not a `torch.Generator`,
    which must be told its seed by the host and draws anew for everything that is mapped.

    Args:
        seed: int64 scalar.
        shape: of the result.
        device: of the result.
    """
    x = seed.to(device) + (torch.arange(math.prod(shape), device=device).view(shape) + 1) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    return _shifted(x ^ _shifted(x, 31), 11).double() * 2.0**-53


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shifted right, zeros coming in: torch's own shift brings in the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def warn_of_dropout(owner: str, part: str, function: Any) -> None:
    """Warns where a module draws anew at every evaluation along a path; called by the constructor of its layer.

    A path has no residual that would show it, and a step that is made again for its gradient is another step.

    Args:
        owner: the layer, in words.
        part: what the module is to it, "field" for one.
        function: the module, or a function, of which nothing is known.
    """
    for name, module in function.named_modules() if isinstance(function, nn.Module) else ():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            which = f"{part}'s '{name}'" if name else part
            warnings.warn(
                f"{owner}: the {which} is a {type(module).__name__}, which draws anew at every evaluation: steps made "
                "again for the gradient are then others, and the gradient is wrong. Try ti.nn.VariationalDropout, "
                "one mask a solve.",
                stacklevel=3,
            )


class VariationalDropout(nn.Module):
    """Dropout whose mask is drawn once a solve and is the same at every evaluation, in the backward pass, too.

    Plain dropout inside a cell is another map at every evaluation, which has no fixed point. Here a public function
    (`fixed_point`, `root`, `argmin`, `nn.DEQ`) draws a new seed when a solve begins, from torch's generator, and the
    mask follows from the seed and the shape. The seed belongs to the solve: its backward pass sees the same mask even
    when the module has been solved again in between. Called by itself the module keeps the mask of the last solve;
    `begin_solve()` draws another. The identity in `eval()` mode. Under `torch.vmap` only with `randomness="same"`.

    The module must be the solved function, part of it, or an argument: a captured one is refused. Masks of the samples'
    own go by the place in the batch, so a large batch stays whole to the end where `batched_args` would narrow it.

    Source: Y. Gal, Z. Ghahramani, NeurIPS 2016, arXiv 1512.05287; in equilibrium models S. Bai, J. Z. Kolter,
    V. Koltun, NeurIPS 2019, arXiv 1909.01377.

    Args:
        p: probability of an element to be zeroed, in [0, 1); the others are scaled by `1 / (1 - p)`.
        shared: dimensions along which the mask is the same; `(1,)` is one for all steps of a sequence `(B, T, C)`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> class Cell(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear, self.dropout = (
        ...             torch.nn.Linear(8, 8),
        ...             ti.nn.VariationalDropout(0.2),
        ...         )
        ...
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
        require(self, "p", is_number(p) and 0 <= p < 1, "a probability in [0, 1)")
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64), persistent=False)
        self._masks: list[tuple[Tensor, tuple, Tensor]] = []

    def begin_solve(self) -> None:
        """A new seed, and with it a new mask; the solve before keeps its own. Draws nothing in `eval()` mode."""
        if not self.training or self.p == 0:
            return
        with torch.inference_mode(False):  # a tensor made in inference mode could not be saved for a backward pass
            seed = torch.randint(2**62, (), device=self.seed.device)
        if transforms.is_mapped(seed):
            raise NotImplementedError(
                f"{type(self).__name__}: got torch.vmap(randomness='different'), expected one mask for all that is "
                "mapped; try randomness='same'"
            )
        self.seed = transforms.unwrapped(seed)
        self._masks = []

    def forward(self, x: Tensor) -> Tensor:
        """`x` times the mask, of the same shape and dtype.

        Raises:
            CaptureError: a solve is under way that was not given this module, and so could not draw its mask.
        """
        if not self.training or self.p == 0:
            return x
        if is_captured(self):
            raise CaptureError(
                f"the function captures a {type(self).__name__}, which would have the same mask at every solve. Pass "
                "the module as an argument, f(z, *args), or make it part of a module that is the function"
            )
        return x * self._mask(x)

    def _mask(self, x: Tensor) -> Tensor:
        shape = self._mask_shape(x)
        for seed, known, mask in self._masks:
            if seed is self.seed and known == (shape, x.dtype, x.device):
                return mask
        with torch.inference_mode(False), torch.no_grad():
            mask = (uniform(self.seed, shape, x.device) >= self.p).to(x.dtype) / (1 - self.p)
        if transforms.level(mask) < 0:  # what belongs to a transform must not outlive it
            self._masks = [*self._masks[1 - KEPT :], (self.seed, (shape, x.dtype, x.device), mask)]
        return mask

    def _mask_shape(self, x: Tensor) -> tuple[int, ...]:
        shared = {dim % x.dim() for dim in self.shared}
        return tuple(1 if dim in shared else size for dim, size in enumerate(x.shape))

    def __getstate__(self) -> dict:
        """Travels without masks: they follow from the seed."""
        return {**self.__dict__, "_masks": []}

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
