"""Differential dynamic programming for controls within bounds: a batch of nonlinear tasks at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.status import Status
from torchimplicit.core.tree import norm
from torchimplicit.optim.control.box import boxed
from torchimplicit.optim.control.riccati import Policy, Stages, holding, sweep_back
from torchimplicit.optim.control.solution import ControlReport
from torchimplicit.optim.control.task import Expansion, Task

HALVINGS = 12  # of a step along the policy
ARMIJO = 1e-4  # the part of the decrease promised by the slope that a step must bring
DAMPING, FACTOR, DAMPING_MAX = 1e-3, 10.0, 1e8  # the first damping, by what it grows and shrinks, its end
ROUNDINGS = 20  # roundings of the cost within which a step counts as no rise
PATIENCE = 10  # steps that change the cost by roundings only, and the residual not for the better, before giving up


class Trajectory(NamedTuple):
    """Where the samples are: states `(B, T + 1, nx)`, controls `(B, T, nu)`, costs `(B,)`."""

    states: Tensor
    controls: Tensor
    cost: Tensor


class Best(NamedTuple):
    """What a solve ended with; `z`, `report`, `knowledge` are what a `PointCall` wants.

    Attributes:
        z: controls, flat, `(B, T * nu)`.
        report: how it went.
        knowledge: None.
        states: `(B, T + 1, nx)`.
        costates: the multipliers of the dynamics, `(B, T, nx)`.
        slope: the derivative of the cost by the controls, `(B, T, nu)`.
        scale: the size of the curvature by each control, `(B, T, nu)`.
    """

    z: Tensor
    report: ControlReport
    knowledge: None
    states: Tensor
    costates: Tensor
    slope: Tensor
    scale: Tensor


@dataclass(frozen=True, kw_only=True)
class BoxDDP:
    r"""Differential dynamic programming with bounds on the controls; the solver of `ilqr`.

    A step expands dynamics and cost along the trajectory, sweeps back through the linear-quadratic problem that this
    gives, at every stage with the controls within their bounds, and follows the policy found along the true dynamics,
    halving its change until the cost falls. The curvature is the Lagrangian's, $\partial^2 (c + \lambda^\top f)$, so
    that convergence is quadratic; samples for which it is indefinite take the cost's alone (iLQR), with more and more
    damping if that is, too. A sample has converged when the RMS over stages and controls of
    $u - \mathrm{clip}(u - D^{-1} \nabla_u J)$ is at most `atol + rtol * rms(u)`; $D$ is the size of the curvature by
    each control, so the residual has the controls' units whatever the cost's are. Where the cost does not curve upwards
    there in all free directions the status is `SADDLE`.

    Y. Tassa, N. Mansard, E. Todorov, Control-limited differential dynamic programming (ICRA 2014); W. Li, E. Todorov,
    Iterative linear quadratic regulator design (ICINCO 2004).

    Args:
        rtol: relative tolerance; None takes 1e-8 in float64 and 1e-4 in float32.
        atol: absolute tolerance; None takes a hundredth of that.
        max_steps: limit of steps.
        curvature: whether the dynamics' own second derivatives take part; False is iLQR, whose steps are cheaper, and
            more of them where dynamics bend. Never of influence on gradients, which are exact.
    """

    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 200
    curvature: bool = True

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            fine = value is None or (is_number(value) and 0 <= value < math.inf)
            require(self, name, fine, "a finite number >= 0, or None")
        require_count(self, "max_steps", least=0)
        require(self, "curvature", isinstance(self.curvature, bool), "True or False")

    @torch.no_grad()
    def run(self, task: Task, u: Tensor) -> Best:
        """Solves a batch of tasks from controls `(B, T, nu)`."""
        u = u.clamp(task.lower, task.upper)
        states = task.rollout(u)
        now = Trajectory(states, u, task.total(states, u))
        samples = _Samples(self, now)
        while True:
            expansion = task.expand(now.states, now.controls)
            policy, promise = self._policy(task, now, expansion, samples)
            residual, scale = _residual(task, now.controls, expansion.slope, policy.curvature)
            samples.judge(residual, now.controls, promise, now.cost, expansion.slope)
            if not samples.going:
                break
            now = _search(task, now, policy, promise, samples)
        samples.fall_aside(~_is_minimum(task, now, expansion, scale))
        z = now.controls.flatten(1)
        return Best(z, samples.report(), None, now.states, expansion.costates, expansion.slope, scale)

    def _policy(self, task: Task, now: Trajectory, expansion: Expansion, samples: _Samples) -> tuple[Policy, Tensor]:
        """The policy of this step, and the slope of the cost along it, `(B,)`, which is not positive."""
        multipliers = expansion.costates if self.curvature else None
        H, P = exact, _ = task.curvature(now.states, now.controls, multipliers)
        unit = exact.diagonal(dim1=-2, dim2=-1).abs().mean((1, 2))
        unit = torch.where(unit > 0, unit, 1)
        low, high = task.lower - now.controls, task.upper - now.controls
        bent = torch.full_like(unit, self.curvature, dtype=torch.bool)
        while True:
            stages = Stages(expansion.F, None, H, expansion.g, P, expansion.p)
            policy = sweep_back(stages, boxed(low, high, samples.damping * unit))
            weak = samples.running & ~policy.sound & (samples.damping < DAMPING_MAX) & now.cost.isfinite()
            if not bool(weak.any()):
                return policy, (policy.k * policy.slope).sum((1, 2))
            samples.damp(weak & ~bent)
            if bool((weak & bent).any()):
                bent = bent & ~weak
                plain, _ = task.curvature(now.states, now.controls, None)
                H = torch.where(bent[:, None, None, None], exact, plain)


def residual_of(u: Tensor, slope: Tensor, scale: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """How far a scaled step down the slope moves the controls within their bounds; zero at a minimum."""
    return u - (u - slope / scale).clamp(lower, upper)


def free_of_bounds(u: Tensor, slope: Tensor, scale: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Which controls no bound holds, in the sense of `residual_of`; bool, like the controls."""
    target = u - slope / scale
    return (target >= lower) & (target <= upper)


def _is_minimum(task: Task, now: Trajectory, expansion: Expansion, scale: Tensor) -> Tensor:
    """Whether the cost curves upwards in every direction that bounds leave free, `(B,)`."""
    H, P = task.curvature(now.states, now.controls, expansion.costates)
    stages = Stages(expansion.F, None, H, expansion.g, P, expansion.p)
    free = free_of_bounds(now.controls, expansion.slope, scale, task.lower, task.upper)
    return sweep_back(stages, holding(free)).sound


def _residual(task: Task, u: Tensor, slope: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """The residual's RMS, `(B,)`, and the scale that it is measured by, positive, `(B, T, nu)`."""
    scale = curvature.diagonal(dim1=-2, dim2=-1).abs()
    typical = scale.mean((1, 2), keepdim=True)
    scale = torch.where(scale > 1e-6 * typical, scale, torch.where(typical > 0, typical, 1))
    scale = torch.where(scale.isfinite(), scale, 1)
    residual = residual_of(u, slope, scale, task.lower, task.upper).flatten(1)
    return norm(residual) / residual.shape[1] ** 0.5, scale


def _search(task: Task, now: Trajectory, policy: Policy, promise: Tensor, samples: _Samples) -> Trajectory:
    """Follows the policy by the largest part of its change that lowers the cost enough; stays where none does."""
    size = torch.ones_like(now.cost)
    searching, kept = samples.running, now
    noise = ROUNDINGS * torch.finfo(now.cost.dtype).eps * now.cost.abs()
    for _ in range(HALVINGS):
        states, controls = task.follow(now.states, now.controls, policy.K, size[:, None, None] * policy.k)
        new = Trajectory(states, controls, task.total(states, controls))
        falls = searching & (new.cost - now.cost <= ARMIJO * size * promise + noise)
        falls = falls & states.flatten(1).isfinite().all(1)
        kept = Trajectory(*(torch.where(like(falls, a), a, b) for a, b in zip(new, kept, strict=True)))
        searching = searching & ~falls
        if not bool(searching.any()):
            break
        size = torch.where(searching, 0.5 * size, size)
    samples.searched(size, searching)
    return kept


def like(flags: Tensor, values: Tensor) -> Tensor:
    """Flags of samples `(B,)`, in the shape of values `(B, ...)`."""
    return flags.reshape(-1, *(1,) * (values.dim() - 1)).expand(values.shape)


class _Samples:
    """What is known of every sample of a solve: whether it runs, its damping, its best residual."""

    def __init__(self, solver: BoxDDP, start: Trajectory):
        dtype = start.controls.dtype
        self.max_steps = solver.max_steps
        self.rtol = solver.rtol if solver.rtol is not None else (1e-8 if dtype == torch.float64 else 1e-4)
        self.atol = solver.atol if solver.atol is not None else 1e-2 * self.rtol
        self.eps = torch.finfo(dtype).eps
        self.running = torch.ones_like(start.cost, dtype=torch.bool)
        self.status = torch.full_like(start.cost, int(Status.MAX_STEPS), dtype=torch.int64)
        self.steps = torch.zeros_like(self.status)
        self.damping = torch.zeros_like(start.cost)
        self.residual = self.best = torch.full_like(start.cost, math.inf)
        self.waited, self.step = torch.zeros_like(self.status), 0
        self.going = True

    def damp(self, which: Tensor) -> None:
        """More damping for some."""
        more = (FACTOR * self.damping).clamp_min(DAMPING)
        self.damping = torch.where(which, more, self.damping)

    def searched(self, size: Tensor, failed: Tensor) -> None:
        """Takes how much of its step each sample could go: less damping after a long step, more after none."""
        self.damp(failed & self.running)
        less = self.damping / FACTOR
        eased = torch.where(less < DAMPING, 0, less)
        self.damping = torch.where((size > 0.4) & ~failed, eased, self.damping)
        self.steps = self.steps + self.running
        self.step += 1

    def judge(self, residual: Tensor, u: Tensor, promise: Tensor, cost: Tensor, slope: Tensor) -> None:
        """Stops the samples that have arrived, are lost, or no longer get better."""
        flat = u.flatten(1)
        finite = cost.isfinite() & slope.flatten(1).isfinite().all(1)
        arrived = residual <= self.atol + self.rtol * norm(flat) / flat.shape[1] ** 0.5
        flat_out = promise.abs() <= ROUNDINGS * self.eps * cost.abs()
        self.waited = torch.where(flat_out & (residual >= self.best), self.waited + 1, 0)
        self.best = torch.where(residual < self.best, residual, self.best)
        stuck = (self.waited >= PATIENCE) | (self.damping >= DAMPING_MAX)
        self.residual = torch.where(self.running & finite, residual, self.residual)
        status = Status.STAGNATED.where(stuck, Status.MAX_STEPS)
        status = Status.CONVERGED.where(arrived, status)
        status = Status.NON_FINITE.unless(finite, status)
        self.status = torch.where(self.running, status, self.status)
        self.running = self.running & finite & ~arrived & ~stuck
        self.going = bool(self.running.any()) and self.step < self.max_steps

    def fall_aside(self, which: Tensor) -> None:
        """Takes back the convergence of samples that are at no minimum."""
        self.status = Status.SADDLE.where(which & (self.status == Status.CONVERGED), self.status)

    def report(self) -> ControlReport:
        """How the solve went."""
        return ControlReport(self.status, self.steps, self.residual, self.step + 1, "ilqr")
