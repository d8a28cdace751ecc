"""The predictor-corrector sampler: ancestral steps, and Langevin steps between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.nn.score.samplers.base import Descent, GridSampler, Task


@dataclass(frozen=True)
class PredictorCorrector(GridSampler):
    r"""Ancestral steps down the noise levels, and steps of Langevin's equation at every one.

    A step down draws from $q(u_b \mid u_a, x = D)$; a correction is $u + \epsilon g + \sqrt{2 \epsilon}\, z$ with the
    score $g = (D - u) / s^2$ and $\epsilon = 2 (r s)^2$. The source estimates that by $2 (r |z| / |g|)^2$ with norms
    that are means over the batch: samples then depend on each other, and with norms of their own their law is another
    one. Order 1, in many steps: for what a network gets wrong; the others need fewer by far.

    Source: Y. Song et al., arXiv 2011.13456, algorithms 2 and 4; the step down: equation 47.

    Args:
        steps: see `GridSampler`.
        rho: see `GridSampler`.
        corrections: steps of Langevin's equation at every level.
        snr: their signal-to-noise ratio `r`; 0.16 in the source.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> model = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=2, std=1.0)
        >>> (
        ...     model.sample(4, ti.nn.PredictorCorrector(steps=100), seed=1).shape,
        ...     model.report.nfev,
        ... )
        (torch.Size([4, 2]), 199)
    """

    steps: int = 500
    corrections: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require_count(self, "corrections", least=0)
        require(self, "snr", is_number(self.snr) and 0 < self.snr < 0.7, "a number between 0 and 0.7, where steps grow")

    def descend(self, task: Task, descent: Descent) -> None:
        """See `GridSampler.descend`."""
        number, pull = 0, 2 * self.snr**2
        for level, lower in pairwise(task.levels(self.steps, self.rho)):
            number, left = number + 1, (lower / level) ** 2
            found = task.denoise(descent.u, descent.at(level))
            noise = lower * math.sqrt(1 - left) * task.noise.draw(number)
            descent.move(left * descent.u + (1 - left) * found + noise, lower)
            for _ in range(self.corrections):
                number += 1
                found = task.denoise(descent.u, descent.at(lower))
                noise = lower * math.sqrt(2 * pull) * task.noise.draw(number)
                descent.move(descent.u + pull * (found - descent.u) + noise, lower)
