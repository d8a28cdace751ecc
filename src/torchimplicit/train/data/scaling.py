"""From numbers with noise, as dequantised data has them, to what a model of them sees; and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.options import require


@dataclass(frozen=True)
class Scaling(ABC):
    """Base of the scalings of numbers in [0, levels), one by one."""

    @abstractmethod
    def __call__(self, x: Tensor, levels: int) -> Tensor:
        """What a model sees, like `x`."""

    @abstractmethod
    def inverse(self, z: Tensor, levels: int) -> Tensor:
        """Numbers in [0, levels] again."""

    @abstractmethod
    def log_det(self, x: Tensor, levels: int) -> Tensor:
        """The logarithm of the scaling's determinant at samples `(B, ...)`, `(B,)`: `log p(x) = log p(z) + log_det`."""


@dataclass(frozen=True)
class Linear(Scaling):
    """To [-1, 1], linearly: what is linear in a picture stays so. Numbers outside of it are cut off on the way back."""

    def __call__(self, x: Tensor, levels: int) -> Tensor:
        """See `Scaling`."""
        return 2 * x / levels - 1

    def inverse(self, z: Tensor, levels: int) -> Tensor:
        """See `Scaling.inverse`."""
        return (z.clamp(-1, 1) + 1) * levels / 2

    def log_det(self, x: Tensor, levels: int) -> Tensor:
        """See `Scaling.log_det`."""
        return torch.full((len(x),), x[0].numel() * math.log(2 / levels), dtype=x.dtype, device=x.device)


@dataclass(frozen=True)
class Logit(Scaling):
    r"""Along a logit, $z = (\operatorname{logit}(a + (1 - 2 a) x / n) - m) / s$: to all real numbers.

    The noise of a black or white pixel, a level wide, gets about as wide as the contrast of the picture, and a model
    has details of one size to learn in place of two that differ a hundredfold: for likelihoods. What is linear in a
    picture is so no longer, but for masks. Mean and deviation are those of MNIST.

    Source: L. Dinh, J. Sohl-Dickstein, S. Bengio, arXiv 1605.08803, section 4.1.

    Args:
        margin: `a`, which keeps 0 finite.
        mean: `m`, about that of the data's logits.
        std: `s`, about their standard deviation.
    """

    margin: float = 1e-6
    mean: float = -4.9
    std: float = 3.6

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require(self, "margin", 0 < self.margin < 0.5, "a number above 0 and below 1/2")
        require(self, "std", 0 < self.std < math.inf, "a number above 0")

    def __call__(self, x: Tensor, levels: int) -> Tensor:
        """See `Scaling`."""
        return (self._share(x, levels).logit() - self.mean) / self.std

    def inverse(self, z: Tensor, levels: int) -> Tensor:
        """See `Scaling.inverse`."""
        share = (z * self.std + self.mean).sigmoid()
        return ((share - self.margin) / (1 - 2 * self.margin)).clamp(0, 1) * levels

    def log_det(self, x: Tensor, levels: int) -> Tensor:
        """See `Scaling.log_det`."""
        share = self._share(x, levels)
        slope = math.log((1 - 2 * self.margin) / (levels * self.std)) - share.log() - (-share).log1p()
        return slope.flatten(1).sum(1)

    def _share(self, x: Tensor, levels: int) -> Tensor:
        return self.margin + (1 - 2 * self.margin) * x / levels
