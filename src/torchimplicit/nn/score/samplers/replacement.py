"""Replacement: what was measured is put in the place of what was drawn, at every level."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.options import require, require_count
from torchimplicit.core.status import Solution
from torchimplicit.nn.score.operator import check_operator
from torchimplicit.nn.score.samplers.base import Descent, GridSampler, Task


@dataclass(frozen=True, eq=False, kw_only=True)
class Replacement(GridSampler):
    r"""Samples of which $y = A x$ was measured, by replacing what was measured with itself plus the level's noise.

    Between replacements are ancestral steps. The rest of the image does not see what is ahead, so that parts fit
    together badly and the law is biased, for any number of steps. With `repeats` each step is taken, undone by noise
    and taken again (RePaint), which lets parts agree: less bias, as many times the evaluations. `Guidance` knows of
    noise in the measurement, and takes any linear operator; this one wants $A A^T$ to be a multiple of the identity,
    as of `imaging.Inpainting` and `imaging.Greyscale`.

    Source: Y. Song et al., arXiv 2011.13456, appendix I.2 and I.3; repeats: A. Lugmayr et al., arXiv 2201.09865,
    algorithm 1.

    Args:
        operator: see `Guidance`.
        y: see `Guidance`; without noise.
        steps: see `GridSampler`.
        rho: see `GridSampler`.
        repeats: how often each step is taken.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> model = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=2, std=1.0)
        >>> seen = ti.imaging.Inpainting(torch.tensor([True, False]))
        >>> model.sample(
        ...     3, ti.nn.Replacement(operator=seen, y=torch.tensor([[0.7]])), seed=1
        ... )[:, 0]
        tensor([0.7000, 0.7000, 0.7000])
    """

    operator: Any
    y: Tensor
    steps: int = 50
    repeats: int = 1

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require_count(self, "repeats")
        known = getattr(self.operator, "coisometry", None) is not None
        require(self, "operator", known, "one whose `coisometry` says which multiple of the identity A A^T is")

    def draw(self, task: Task) -> Solution:
        """See `Sampler.draw`."""
        y = check_operator("Replacement", self.operator, self.y, task.start)
        solution = super().draw(task)
        return replace(solution, value=self._replaced(solution.value, y))

    def descend(self, task: Task, descent: Descent) -> None:
        """See `GridSampler.descend`."""
        number, y = 0, check_operator("Replacement", self.operator, self.y, task.start)
        for level, lower in pairwise(task.levels(self.steps, self.rho)):
            left = (lower / level) ** 2
            for repeat in range(self.repeats):
                number += 3
                u = self._replaced(descent.u, y + level * self.operator.A(task.noise.draw(number - 2)))
                found = task.denoise(u, descent.at(level))
                u = left * u + (1 - left) * found + lower * math.sqrt(1 - left) * task.noise.draw(number - 1)
                again = repeat < self.repeats - 1
                back = math.sqrt(level**2 - lower**2) * task.noise.draw(number) if again else torch.zeros_like(u)
                descent.move(u + back, level if again else lower)

    def _replaced(self, u: Tensor, y: Tensor) -> Tensor:
        """The nearest images that measure as `y`."""
        return u - self.operator.A_adjoint(self.operator.A(u) - y) / self.operator.coisometry
