"""Paths that keep the signal and add noise to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.nn.score.schedule import Schedule


@dataclass(frozen=True)
class EDM(Schedule):
    """The path whose time is its noise level: `alpha = 1`, `sigma = t`.

    Source: T. Karras et al., arXiv 2206.00364, table 1.

    Args:
        sigma_min: the least noise; far below the width of a grey level for likelihoods.
        sigma_max: the most; far above the data's standard deviation.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> ti.nn.EDM().log_snr(torch.tensor([0.1, 1.0, 10.0]))
        tensor([ 4.6052,  0.0000, -4.6052])
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        self._require("sigma_min", "sigma_max")

    @property
    def span(self) -> tuple[float, float]:
        """See `Schedule.span`."""
        return self.sigma_min, self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        """See `Schedule.alpha`."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """See `Schedule.sigma`."""
        return t

    def drift(self, t: Tensor) -> Tensor:
        """See `Schedule.drift`."""
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """See `Schedule.diffusion`."""
        return (2 * t).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        """See `Schedule.time`."""
        return (-0.5 * log_snr).exp()


@dataclass(frozen=True)
class VE(EDM):
    r"""The path whose variance explodes: $\alpha = 1$, $\sigma = \sigma_{min} (\sigma_{max} / \sigma_{min})^t$.

    Source: Y. Song et al., arXiv 2011.13456, equation 30.

    Args:
        sigma_min: the noise at time 0.
        sigma_max: the noise at time 1.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> ti.nn.VE(sigma_min=0.01, sigma_max=100.0).sigma(torch.tensor([0.0, 0.5, 1.0]))
        tensor([1.0000e-02, 1.0000e+00, 1.0000e+02])
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    @property
    def span(self) -> tuple[float, float]:
        """See `Schedule.span`."""
        return 0.0, 1.0

    def sigma(self, t: Tensor) -> Tensor:
        """See `Schedule.sigma`."""
        return self.sigma_min * (self._rate * t).exp()

    def diffusion(self, t: Tensor) -> Tensor:
        """See `Schedule.diffusion`."""
        return self.sigma(t) * math.sqrt(2 * self._rate)

    def time(self, log_snr: Tensor) -> Tensor:
        """See `Schedule.time`."""
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._rate

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)
