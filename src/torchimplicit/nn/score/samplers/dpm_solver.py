"""DPM-Solver++: the exponential multistep method on the probability flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from torchimplicit.nn.score.samplers.base import Descent, GridSampler, Task


@dataclass(frozen=True)
class DPMSolverMultistep(GridSampler):
    r"""DPM-Solver++(2M): exact for a denoiser that is linear in $\log s$ between levels; order 2, an evaluation a step.

    With $h = \log s_k / s_{k+1}$ it is $u_{k+1} = e^{-h} u_k + (1 - e^{-h}) \hat D$, where $\hat D$ is the denoiser
    extrapolated from the last two levels. It takes `steps` evaluations: the sampler to begin with, good from about 10.

    Source: C. Lu et al., arXiv 2211.01095, algorithm 2.

    Args:
        steps: see `GridSampler`.
        rho: see `GridSampler`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> model = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=2, std=1.0)
        >>> (
        ...     model.sample(4, ti.nn.DPMSolverMultistep(steps=10), seed=1).shape,
        ...     model.report.nfev,
        ... )
        (torch.Size([4, 2]), 10)
    """

    def descend(self, task: Task, descent: Descent) -> None:
        """See `GridSampler.descend`."""
        before: Tensor | None = None
        last = math.nan
        for level, lower in pairwise(task.levels(self.steps, self.rho)):
            h = math.log(level / lower)
            found = task.denoise(descent.u, descent.at(level))
            ahead = found if before is None else found + (found - before) * (h / (2 * last))
            descent.move(math.exp(-h) * descent.u - math.expm1(-h) * ahead, lower)
            before, last = found, h
