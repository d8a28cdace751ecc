"""The straight path from data to noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.nn.score.schedule import Schedule


@dataclass(frozen=True)
class Straight(Schedule):
    r"""The straight path of flow matching and rectified flow: $\alpha = 1 - t$, $\sigma = t$.

    Here as everywhere time 0 is the data, as in Liu et al. with time turned round; `nn.CNF` and
    `nn.flow_matching_loss` go from the noise at their first time.

    Source: X. Liu, C. Gong, Q. Liu, arXiv 2209.03003; Y. Lipman et al., arXiv 2210.02747, equation 22.

    Args:
        t_min: the first time, above 0.
        t_max: the last time, below 1.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> ti.nn.Straight().level(torch.tensor(0.5))
        tensor(1.)
    """

    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        self._require("t_min", "t_max", below=1.0)

    @property
    def span(self) -> tuple[float, float]:
        """See `Schedule.span`."""
        return self.t_min, self.t_max

    def alpha(self, t: Tensor) -> Tensor:
        """See `Schedule.alpha`."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """See `Schedule.sigma`."""
        return t

    def drift(self, t: Tensor) -> Tensor:
        """See `Schedule.drift`."""
        return -1 / (1 - t)

    def diffusion(self, t: Tensor) -> Tensor:
        """See `Schedule.diffusion`."""
        return (2 * t / (1 - t)).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        """See `Schedule.time`."""
        return torch.sigmoid(-0.5 * log_snr)
