"""What samplers have in common: the task that they are given, and the way of a batch down the noise levels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.status import OnFailure, Solution, Status, react
from torchimplicit.nn.score.noise import Normals
from torchimplicit.nn.score.samplers.report import SamplingReport


class Conditioned(nn.Module, ABC):
    """A denoiser of a batch, with all that it is conditioned on: what samplers ask.

    Attributes:
        calls: how often the network was evaluated.
        failed: samples for which it could not be told at some level, bool `(B,)`; None for none.
        unsolved: see `SamplingReport`.
    """

    calls: int = 0
    failed: Tensor | None = None
    unsolved: Tensor | None = None

    @abstractmethod
    def forward(self, u: Tensor, s: Tensor) -> Tensor:
        """The mean of the images behind `u = x + s noise`, `(B, ...)`; levels `(B, 1, ...)`."""


class Task(NamedTuple):
    """What a sampler is given.

    Attributes:
        denoise: the denoiser.
        start: samples of the most noise, `(B, ...)`.
        least: the noise level to go to.
        most: the noise level of the start.
        noise: the noise of these samples; draw 0 is spent.
    """

    denoise: Conditioned
    start: Tensor
    least: float
    most: float
    noise: Normals

    def levels(self, steps: int, rho: float) -> list[float]:
        r"""Noise levels from the most to the least, evenly spaced in $s^{1/\rho}$; in $\log s$ for an infinite one.

        Source: T. Karras et al., arXiv 2206.00364, equation 5.
        """
        parts = [k / max(steps - 1, 1) for k in range(steps)]
        if math.isinf(rho):
            return [self.most ** (1 - part) * self.least**part for part in parts]
        ends = self.most ** (1 / rho), self.least ** (1 / rho)
        return [((1 - part) * ends[0] + part * ends[1]) ** rho for part in parts]


@dataclass(frozen=True)
class Sampler(ABC):
    """Base of the samplers: a way from noise to samples, as a value.

    A sampler works in `u = x_t / alpha`, where every schedule is the same path, and goes from the most noise to the
    least; the last evaluation takes that away, too. A sample depends on its seed and on nothing else: to the bit where
    the network's answers do, too.
    """

    @abstractmethod
    def draw(self, task: Task) -> Solution:
        """Samples `(B, ...)`, with a `SamplingReport`."""


@dataclass(frozen=True)
class GridSampler(Sampler):
    r"""Base of the samplers on a grid of noise levels. Their samples have no gradient.

    Args:
        steps: how many levels there are, the most and the least included.
        rho: how they are spaced, evenly in $s^{1/\rho}$: 7 in EDM; infinity is even in the logarithm.
    """

    steps: int = 18
    rho: float = 7.0

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        require_count(self, "steps", least=2)
        require(self, "rho", is_number(self.rho) and self.rho > 0, "a number above 0, or infinity")

    def draw(self, task: Task) -> Solution:
        """See `Sampler.draw`."""
        with torch.no_grad():
            descent = Descent(task)
            self.descend(task, descent)
            descent.finish()
        return descent.solution()

    @abstractmethod
    def descend(self, task: Task, descent: Descent) -> None:
        """Goes down to the least noise."""


class Descent:
    """A batch on its way: samples that are not finite stop where they were last.

    Attributes:
        u: where they are, `(B, ...)`.
    """

    def __init__(self, task: Task):
        self.task, self.u = task, task.start
        self.alive = finite(task.start)
        self.steps = torch.zeros_like(self.alive, dtype=torch.int64)
        self.reached = torch.full_like(self.steps, task.most, dtype=task.start.dtype)

    def at(self, level: float) -> Tensor:
        """A noise level as the denoiser takes it, `(B, 1, ...)`."""
        return self.u.new_full((len(self.u), *(1,) * (self.u.dim() - 1)), level)

    def move(self, u: Tensor, level: float) -> None:
        """Goes to `u`, at another noise level."""
        self.alive = self.alive & finite(u)
        self.u = torch.where(beside(self.alive, u), u, self.u)
        self.reached = torch.where(self.alive, level, self.reached)
        self.steps = self.steps + self.alive

    def finish(self) -> None:
        """Takes away the noise that is left, at the level that each sample has reached."""
        found = self.task.denoise(self.u, beside(self.reached, self.u))
        good = finite(found)
        self.alive, self.u = self.alive & good, torch.where(beside(good, found), found, self.u)

    def solution(self) -> Solution:
        """The samples and how they came to be."""
        status = Status.CONVERGED.unless(~self.alive, torch.full_like(self.steps, int(Status.NON_FINITE)))
        report = SamplingReport(
            status, self.steps, torch.zeros_like(self.reached), self.task.denoise.calls, "sample", accepted=self.steps,
            rejected=torch.zeros_like(self.steps), reached=self.reached, adapts=False, seed=self.task.noise.seed,
        )  # fmt: skip
        return Solution(self.u, report)


def beside(of_samples: Tensor, u: Tensor) -> Tensor:
    """What is one a sample, `(B,)`, as it broadcasts against states."""
    return of_samples.view(-1, *(1,) * (u.dim() - 1))


def finite(u: Tensor) -> Tensor:
    """Which samples are finite, `(B,)`."""
    return u.isfinite().flatten(1).all(1)


def drawn(sampler: Sampler, task: Task, *, on_failure: OnFailure) -> Solution:
    """A sampler's samples; those that failed are told of.

    Raises:
        ConvergenceError: there are such samples (with `on_failure="raise"`).
    """
    solution = sampler.draw(task)
    failed = task.denoise.failed
    if failed is not None:
        healthy = solution.report.status == Status.CONVERGED
        solution.report.status = torch.where(failed & healthy, int(Status.STAGNATED), solution.report.status)
    assert isinstance(solution.report, SamplingReport)
    solution.report.unsolved = task.denoise.unsolved
    react(solution.report, on_failure, solution)
    return solution
