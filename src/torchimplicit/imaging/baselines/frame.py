r"""Linear maps of images that baselines are sparse in: differences, and wavelets without decimation.

Both take `(..., H, W)` of any sizes, real or complex, to `(..., H, W, bands)`.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from torchimplicit.core.options import require_count
from torchimplicit.optim import prox
from torchimplicit.optim.proximal.total_variation_2d import gradient, transposed


class Frame(Protocol):
    """A linear map $K$ to coefficients."""

    @property
    def bound(self) -> float:
        """Of $|K|^2$."""
        ...

    @property
    def joint(self) -> bool:
        """Whether the coefficients of a pixel are measured by their length, and not each by its size."""
        ...

    def analyse(self, x: Tensor) -> Tensor:
        """$K x$, `(..., H, W, bands)`."""
        ...

    def adjoint(self, v: Tensor) -> Tensor:
        """$K^H v$, `(..., H, W)`."""
        ...

    def gram(self, x: Tensor) -> Tensor:
        """$K^H K x$, `(..., H, W)`."""
        ...

    def weights(self, like: Tensor) -> Tensor:
        """What the size of every band counts, `(bands,)`; `()` where all count alike."""
        ...


class Differences(NamedTuple):
    """Forward differences down and to the right, zero across the last edges.

    Attributes:
        joint: whether the length of the two counts, or the sum of their sizes.
    """

    joint: bool = True
    bound: float = 8.0  # 4 in each direction

    def analyse(self, x: Tensor) -> Tensor:
        """See `Frame.analyse`."""
        return gradient(x)

    def adjoint(self, v: Tensor) -> Tensor:
        """See `Frame.adjoint`."""
        return transposed(v)

    def gram(self, x: Tensor) -> Tensor:
        """See `Frame.gram`."""
        return transposed(gradient(x))

    def weights(self, like: Tensor) -> Tensor:
        """See `Frame.weights`."""
        return like.real.new_ones(())


class Wavelets:
    r"""Daubechies' orthogonal wavelets without decimation, around the edges: $K^H K = I$ at every size.

    Of level $j$ there are three bands, columns and rows filtered to high frequencies or low ones by filters that are
    stretched by $2^{j - 1}$, and one of what is left at the last. For sizes that $2^L$ divides, $\sum_j 2^{-j} |c_j|_1$
    is the $\ell_1$ norm of the orthogonal transform's details, meaned over all shifts of the image: cycle spinning at
    once.

    Source: R. Coifman, D. Donoho, Translation-invariant de-noising (1995); G. Nason, B. Silverman, The stationary
    wavelet transform (1995).

    Args:
        moments: that vanish; the filters have twice as many taps. 1 is Haar.
        levels: $L$.
    """

    bound = 1.0
    joint = False

    def __init__(self, moments: int, levels: int):
        require_count(self, moments=moments, levels=levels)
        self.moments, self.levels = moments, levels

    def analyse(self, x: Tensor) -> Tensor:
        """See `Frame.analyse`; details of the first level first, what is left last."""
        bands, low = [], x
        for level in range(self.levels):
            down = self._split(low, -2, level)
            (low, *details) = [band for half in down for band in self._split(half, -1, level)]
            bands += details
        return torch.stack([*bands, low], -1)

    def adjoint(self, v: Tensor) -> Tensor:
        """See `Frame.adjoint`."""
        *bands, low = v.unbind(-1)
        for level in reversed(range(self.levels)):
            four = [low, *bands[3 * level : 3 * level + 3]]
            halves = [self._join(four[i], four[i + 1], -1, level) for i in (0, 2)]
            low = self._join(*halves, -2, level)
        return low

    def gram(self, x: Tensor) -> Tensor:
        """See `Frame.gram`."""
        return x

    def weights(self, like: Tensor) -> Tensor:
        """See `Frame.weights`: nothing for what is left."""
        sizes = [2.0**-level for level in range(1, self.levels + 1) for _ in range(3)]
        return like.real.new_tensor([*sizes, 0.0])

    @cached_property
    def taps(self) -> list[float]:
        """Of the filter for low frequencies, whose squares sum to a half."""
        return [tap / math.sqrt(2) for tap in daubechies(self.moments).tolist()]

    def _split(self, x: Tensor, axis: int, level: int) -> tuple[Tensor, Tensor]:
        """Low and high frequencies along an axis."""
        moved = [x.roll(-i << level, axis) for i in range(len(self.taps))]
        return tuple(_weighted(taps, moved) for taps in (self.taps, self._high))  # type: ignore[return-value]

    def _join(self, low: Tensor, high: Tensor, axis: int, level: int) -> Tensor:
        """The adjoint of `_split`."""
        taps = enumerate(zip(self.taps, self._high, strict=True))
        parts = [(low * a + high * b).roll(i << level, axis) for i, (a, b) in taps]
        return torch.stack(parts).sum(0)

    @property
    def _high(self) -> list[float]:
        return [(-1) ** i * tap for i, tap in enumerate(reversed(self.taps))]


def size_of(frame: Frame, v: Tensor) -> Tensor:
    """The sizes of coefficients `(..., bands)` that count, `(..., bands)`, or `(...)` where they count jointly."""
    return torch.linalg.vector_norm(v, dim=-1) if frame.joint else v.abs()


def shrunk(frame: Frame, v: Tensor, step: Tensor) -> Tensor:
    """The proximal point of the size of coefficients `(..., bands)`, for steps `(B, 1, ...)`."""
    parts = torch.view_as_real(v) if v.is_complex() else v.unsqueeze(-1)
    step = step if frame.joint else step.unsqueeze(-1) * frame.weights(v)
    near = prox.l2(parts.flatten(-2) if frame.joint else parts, step, on_failure="ignore").view_as(parts)
    return torch.view_as_complex(near.contiguous()) if v.is_complex() else near.squeeze(-1)


def daubechies(moments: int) -> Tensor:
    r"""The taps `(2 N,)` of Daubechies' orthogonal filter with $N$ vanishing moments, of extremal phase, in float64.

    Its polynomial is $(1 + z)^N q(z)$, where $q$ has those roots inside of the circle for which $\sum_{k < N}
    \binom{N - 1 + k}{k} y^k$ vanishes at $y = (2 - z - 1 / z) / 4$. Taps sum to $\sqrt 2$.

    Source: I. Daubechies, Comm. Pure Appl. Math. 41 (1988) 909, section 4.

    Args:
        moments: $N$, from 1 to 10: beyond, rounding shows in the roots.

    Raises:
        ValueError: another number.
    """
    if not isinstance(moments, int) or not 1 <= moments <= 10:
        raise ValueError(f"daubechies(moments={moments!r}): expected an integer from 1 to 10")
    roots = [-1.0 + 0j] * moments
    if moments > 1:
        row = torch.tensor([math.comb(moments - 1 + k, k) for k in range(moments)], dtype=torch.float64, device="cpu")
        companion = torch.zeros(moments - 1, moments - 1, dtype=torch.float64, device="cpu")
        companion[1:, :-1] = torch.eye(moments - 2, dtype=torch.float64, device="cpu")
        companion[:, -1] = -row[:-1] / row[-1]
        y = torch.linalg.eigvals(companion)
        half = 1 - 2 * y  # z + 1 / z is twice that
        z = half + (half**2 - 1).sqrt()
        roots += torch.where(z.abs() < 1, z, 1 / z).tolist()
    taps = torch.ones(1, dtype=torch.complex128, device="cpu")
    for root in roots:
        taps = torch.nn.functional.pad(taps, (0, 1)) - root * torch.nn.functional.pad(taps, (1, 0))
    return taps.real * (math.sqrt(2) / taps.real.sum())


def _weighted(taps: list[float], tensors: list[Tensor]) -> Tensor:
    total = taps[0] * tensors[0]
    for tap, tensor in zip(taps[1:], tensors[1:], strict=True):
        total = total + tap * tensor
    return total
