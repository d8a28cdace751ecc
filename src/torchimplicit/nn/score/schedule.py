"""Gaussian paths from data to noise, as values."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require


@dataclass(frozen=True)
class Schedule(ABC):
    r"""A Gaussian path $x_t = \alpha(t)\, x + \sigma(t)\, \varepsilon$ from data to noise.

    It is the law of $dx = f(t)\, x\,dt + g(t)\,dW$ with $f = \alpha'/\alpha$ and
    $g^2 = 2 \sigma^2\, (\log s)'$, where $s = \sigma / \alpha$ is the noise level. In $u = x_t / \alpha = x + s\,
    \varepsilon$ all schedules are one and the same path, at other times: samplers and likelihoods work there, and a
    schedule says which levels there are, and in which time and scale a user sees them.

    Source: Y. Song et al. (score_sde), arXiv 2011.13456, appendix B; T. Karras et al. (EDM), arXiv 2206.00364, appendix
    B; D. Kingma et al., arXiv 2107.00630, for the signal-to-noise ratio as the time that counts.
    """

    @property
    @abstractmethod
    def span(self) -> tuple[float, float]:
        """The times of the least and of the most noise."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The signal's factor at times of any shape."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The noise's standard deviation at times of any shape."""

    @abstractmethod
    def drift(self, t: Tensor) -> Tensor:
        """The factor `f` of the linear drift, at times of any shape."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """The diffusion `g`, at times of any shape."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """When the logarithm of the signal-to-noise ratio has some value; the inverse of `log_snr`."""

    def log_snr(self, t: Tensor) -> Tensor:
        r"""The logarithm of the signal-to-noise ratio, $\log \alpha^2 / \sigma^2$, which falls with the time."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def level(self, t: Tensor) -> Tensor:
        r"""The noise level, $s = \sigma / \alpha$."""
        return self.sigma(t) / self.alpha(t)

    @property
    def levels(self) -> tuple[float, float]:
        """The least and the largest noise level."""
        least, most = self.level(torch.tensor(self.span, dtype=torch.float64, device="cpu")).tolist()
        return least, most

    def _require(self, *names: str, below: float = math.inf) -> None:
        """Refuses what is no positive number in order, below some bound."""
        last = 0.0
        for name in names:
            value = getattr(self, name)
            require(self, name, is_number(value) and last < value < below, f"a number above {last:g} and below {below}")
            last = value
