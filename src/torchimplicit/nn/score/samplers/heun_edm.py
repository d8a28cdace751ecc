"""EDM's sampler: Heun's method on the probability flow, with noise on the way where that is wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torchimplicit.core.options import is_number, require
from torchimplicit.nn.score.samplers.base import Descent, GridSampler, Task

_MOST = math.sqrt(2) - 1  # of the noise that is there, what a step may add


@dataclass(frozen=True)
class HeunEDM(GridSampler):
    r"""Heun's method on $du/ds = (u - D(u, s)) / s$ over the grid of noise levels: order 2.

    It takes `2 steps - 1` evaluations. With `churn` noise is added before every step and the step goes down from there,
    which corrects what a network gets wrong, for more steps; without, it is the probability flow, where samples are a
    smooth function of the noise. Not for few evaluations, where `DPMSolverMultistep` takes half of them.

    Source: T. Karras et al. (EDM), arXiv 2206.00364, algorithms 1 and 2.

    Args:
        steps: see `GridSampler`.
        rho: see `GridSampler`.
        churn: how much noise is added on the way, over all steps.
        churn_from: the least noise level at which it is.
        churn_to: the largest.
        churn_noise: standard deviation of the noise that is added, for one that is a little above 1 makes up for what
            networks remove too much.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> model = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=2, std=1.0)
        >>> model.sample(4, ti.nn.HeunEDM(steps=10), seed=1).shape, model.report.nfev
        (torch.Size([4, 2]), 19)
    """

    churn: float = 0.0
    churn_from: float = 0.0
    churn_to: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        for name in ("churn", "churn_from", "churn_to", "churn_noise"):
            value = getattr(self, name)
            require(self, name, is_number(value) and value >= 0, "a number >= 0")

    def descend(self, task: Task, descent: Descent) -> None:
        """See `GridSampler.descend`."""
        for number, (level, lower) in enumerate(pairwise(task.levels(self.steps, self.rho)), start=1):
            u, raised = descent.u, level
            if self.churn and self.churn_from <= level <= self.churn_to:
                raised = level * (1 + min(self.churn / self.steps, _MOST))
                u = u + self.churn_noise * math.sqrt(raised**2 - level**2) * task.noise.draw(number)
            slope = (u - task.denoise(u, descent.at(raised))) / raised
            end = u + (lower - raised) * slope
            after = (end - task.denoise(end, descent.at(lower))) / lower
            descent.move(u + (lower - raised) * (slope + after) / 2, lower)
