"""Samplers by `odeint` and `sdeint`: the probability flow and the reverse equation, with gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require_instance
from torchimplicit.core.status import Solution, Status
from torchimplicit.nn.score.samplers.base import Conditioned, Sampler, Task, beside, finite
from torchimplicit.nn.score.samplers.report import SamplingReport
from torchimplicit.ode import Checkpointed, PathAdjoint, Tsit5, odeint
from torchimplicit.path.report import PathReport
from torchimplicit.path.solver import PathSolver
from torchimplicit.sde import SRA1, Brownian, SDESolver, sdeint


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    r"""The probability flow $du/d\tau = D - u$ in $\tau = -\log s$, by a solver of `odeint`: steps by a tolerance.

    Every sample chooses steps of its own. Samples are differentiable by the weights, by the given adjoint.

    Tolerances hold for a step, relative to the `u` that it is made at, which starts as large as the most noise; the
    flow then shrinks it, and its errors. On normal data of any variance `Tsit5` was off by at most 2.4 times `atol +
    rtol * |x|` in the units of the data, `Bosh3` by 9. An `atol` above the data's finest scale is no accuracy at all.

    Source: Y. Song et al., arXiv 2011.13456, equation 13.

    Args:
        solver: `Tsit5(rtol=1e-3, atol=1e-3)`, ...
        adjoint: how to differentiate, see `odeint`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> model = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=2, std=1.0)
        >>> model.sample(4, ti.nn.ProbabilityFlow(), seed=1).shape
        torch.Size([4, 2])
    """

    solver: PathSolver = Tsit5()
    adjoint: PathAdjoint = Checkpointed()

    def __post_init__(self) -> None:
        """Refuses what is no solver."""
        require_instance("ProbabilityFlow(solver)", self.solver, PathSolver, "ti.Tsit5()")
        require_instance("ProbabilityFlow(adjoint)", self.adjoint, PathAdjoint, "ti.Checkpointed()")

    def draw(self, task: Task) -> Solution:
        """See `Sampler.draw`."""
        field = _Pull(task.denoise, 1.0)
        options: dict[str, Any] = {"solver": self.solver, "adjoint": self.adjoint, "on_failure": "ignore"}
        return _finished(odeint(field, task.start, _span(task), **options), task)


@dataclass(frozen=True)
class ReverseSDE(Sampler):
    r"""The reverse equation $du = 2 (D - u)\,d\tau + \sqrt 2\, s\,dW$ in $\tau = -\log s$, by a solver of `sdeint`.

    Its noise forgets what the network has got wrong before, at the price of small steps. The noise is additive: a
    solver for that is of a higher order. Samples are differentiable by the weights, by the given adjoint.

    Source: B. Anderson, Stochastic Processes and their Applications 12 (1982) 313; Y. Song et al., arXiv 2011.13456,
    equation 6.

    Args:
        solver: `SRA1(dt=0.1)`, `EulerMaruyama(dt=0.05)`, ...; steps are in the logarithm of the noise level.
        adjoint: how to differentiate, see `sdeint`.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> model = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=2, std=1.0)
        >>> model.sample(4, ti.nn.ReverseSDE(), seed=1).shape
        torch.Size([4, 2])
    """

    solver: SDESolver = SRA1(dt=0.1)
    adjoint: PathAdjoint = Checkpointed()

    def __post_init__(self) -> None:
        """Refuses what is no solver."""
        require_instance("ReverseSDE(solver)", self.solver, SDESolver, "ti.sde.SRA1(dt=0.1)")
        require_instance("ReverseSDE(adjoint)", self.adjoint, PathAdjoint, "ti.Checkpointed()")

    def draw(self, task: Task) -> Solution:
        """See `Sampler.draw`."""
        options: dict[str, Any] = {
            "solver": self.solver, "adjoint": self.adjoint, "noise": "additive", "calculus": self.solver.calculus,
            "brownian": Brownian(seed=task.noise.seeds), "on_failure": "ignore",
        }  # fmt: skip
        return _finished(sdeint(_Pull(task.denoise, 2.0), _noise, task.start, _span(task), **options), task)


class _Pull(nn.Module):
    """A field towards the denoised images."""

    def __init__(self, denoise: Conditioned, rate: float):
        super().__init__()
        self.denoise, self.rate = denoise, rate

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.rate * (self.denoise(u, (-t).exp()) - u)


def _noise(t: Tensor, u: Tensor) -> Tensor:
    return (math.sqrt(2) * (-t).exp()).expand_as(u)


def _span(task: Task) -> Tensor:
    """From the most noise to the least, in `-log s`."""
    return -torch.tensor([task.most, task.least], dtype=torch.float64, device=task.start.device).log().to(task.start)


def _finished(solution: Solution, task: Task) -> Solution:
    """The samples of a path: what noise is left is taken away, at the level that each has reached."""
    path, u = solution.report, solution.value[-1]
    assert isinstance(path, PathReport)
    report = SamplingReport.of(path, task.noise.seed)
    levels = beside(report.reached.to(u), u)
    x = task.denoise(u, levels)
    good = finite(x)
    if not bool(good.all()):  # whose derivatives would reach the weights, though nobody asks for them
        rows = beside(good, u)
        start = torch.where(rows, u, task.start), torch.where(rows, levels, task.most)
        x = torch.where(rows, task.denoise(*start), u)
        report.status = torch.where(good, report.status, int(Status.NON_FINITE))
    report.nfev = task.denoise.calls
    return Solution(x, report)
