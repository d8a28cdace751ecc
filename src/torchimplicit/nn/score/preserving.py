"""Paths that fade the signal out as noise comes in, by an equation with bounded coefficients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.nn.score.schedule import Schedule


@dataclass(frozen=True)
class VP(Schedule):
    r"""The path that keeps the variance: $\alpha = e^{-B/2}$, $\sigma^2 = 1 - e^{-B}$.

    $B = \int_0^t \beta = \beta_{min} t + (\beta_{max} - \beta_{min}) t^2 / 2$. DDPM's, in continuous time.

    Source: Y. Song et al., arXiv 2011.13456, equations 32 and 33.

    Args:
        beta_min: the rate of noise at time 0.
        beta_max: the rate of noise at time 1.
        t_min: the first time; at 0 there is no noise, and no score.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> path, t = ti.nn.VP(), torch.tensor([0.01, 0.5, 1.0])
        >>> torch.allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones(3))
        True
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        self._require("beta_min", "beta_max")
        self._require("t_min", below=1.0)

    @property
    def span(self) -> tuple[float, float]:
        """See `Schedule.span`."""
        return self.t_min, 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """See `Schedule.alpha`."""
        return (-0.5 * self._total(t)).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """See `Schedule.sigma`."""
        return (-torch.expm1(-self._total(t))).sqrt()

    def drift(self, t: Tensor) -> Tensor:
        """See `Schedule.drift`."""
        return -0.5 * self._rate(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """See `Schedule.diffusion`."""
        return self._rate(t).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        """See `Schedule.time`."""
        return self._when(torch.nn.functional.softplus(-log_snr, threshold=math.inf))

    def _rate(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _total(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t.square()

    def _when(self, total: Tensor) -> Tensor:
        """The root of the quadratic equation, without cancellation."""
        return 2 * total / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * total).sqrt())


@dataclass(frozen=True)
class SubVP(VP):
    r"""The path below that of `VP`: the same $\alpha$, and $\sigma = 1 - e^{-B}$, made for likelihoods.

    Source: Y. Song et al., arXiv 2011.13456, equation 29.

    Args:
        beta_min: see `VP`.
        beta_max: see `VP`.
        t_min: see `VP`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> t = torch.tensor([0.1, 0.5])
        >>> torch.allclose(ti.nn.SubVP().sigma(t), ti.nn.VP().sigma(t) ** 2)
        True
    """

    t_min: float = 1e-3

    def sigma(self, t: Tensor) -> Tensor:
        """See `Schedule.sigma`."""
        return -torch.expm1(-self._total(t))

    def diffusion(self, t: Tensor) -> Tensor:
        """See `Schedule.diffusion`."""
        return (self._rate(t) * -torch.expm1(-2 * self._total(t))).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        """See `Schedule.time`. The level is `2 sinh(B / 2)`."""
        return self._when(2 * torch.asinh(0.5 * (-0.5 * log_snr).exp()))
