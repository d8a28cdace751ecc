"""The optimality conditions of a control task as a residual, and linear solves with its Jacobian along the band."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core.problem import Residual, Root
from torchimplicit.core.status import Status
from torchimplicit.core.tree import norm
from torchimplicit.linear import LU, LinearSolver
from torchimplicit.linear.operator import LinearOperator
from torchimplicit.linear.report import LinearReport
from torchimplicit.linear.solver import LinearResult, Prepared
from torchimplicit.optim.control.box_ddp import free_of_bounds, residual_of
from torchimplicit.optim.control.riccati import Policy, Stages, holding, rollout, sweep_back
from torchimplicit.optim.control.task import Task

REFINEMENTS = 2  # of a solve along the band: rounding grows with the horizon where dynamics are unstable


class Optimality:
    r"""The residual $u - \mathrm{clip}(u - D^{-1} \nabla_u J(u), l, h)$ of a task, `(B, T, nu)`.

    It vanishes where the Karush-Kuhn-Tucker conditions hold. Its derivative holds the controls at a bound to that bound
    and has the whole cost's Hessian for the others. A control on a bound with no force against it counts as free. `D`
    is any positive number for every control: no matter for where it vanishes, nor for what the solution's derivatives
    are, but it makes the residual one of controls rather than of costs.
    """

    def __init__(self) -> None:
        """`D` is one until a solve has found a better one."""
        self.scale: Tensor | None = None

    def __call__(self, u: Tensor, *task: Any) -> Tensor:
        """The residual of `Task(*task[:8])`; what follows are modules, which need only be known."""
        task_ = Task(*task[:8])
        slope = task_.slope(u)
        return residual_of(u, slope, torch.ones_like(slope) if self.scale is None else self.scale, *task[1:3])


class Control(Root):
    """The task's optimality as a problem that adjoints can differentiate.

    Attributes:
        now: the task with the tensors that are bound; None outside of `bind`.
    """

    form = "dynamics(x, u, *args) and cost(x, u, *args)"
    f: Optimality
    now: Task | None = None

    @contextmanager
    def bind(
        self, tensors: list[Tensor] | tuple[Tensor, ...], audit: bool = False, keep_buffers: bool = False
    ) -> Iterator[Residual]:
        """See `Problem.bind`."""
        if audit:
            tensors = [tensor.detach() for tensor in tensors]
        held = self.now
        with super().bind(tensors, audit, keep_buffers) as residual, self.explicit.bind(tensors, keep_buffers) as bound:
            self.now = Task(*bound.args[:8])
            try:
                yield residual
            finally:
                self.now = held


@dataclass(frozen=True, kw_only=True)
class Band(LinearSolver):
    """Solves with the Jacobian of a task's optimality by one sweep along the horizon, `O(T n^3)`.

    The Hessian of the cost by the controls is never built: its inverse, over the controls that are free, is a
    linear-quadratic problem whose stages are the Lagrangian's second derivatives.
    """

    problem: Control

    def tolerance(self, b: Tensor) -> Tensor:
        """See `LinearSolver.tolerance`."""
        return LU().tolerance(b)

    def prepare(self, operator: LinearOperator, inverse: LinearOperator | None = None) -> Prepared:
        """Expands the task at the operator's point; `LU` under `torch.vmap`, where its stages cannot be seen."""
        if self.problem.now is None:
            return LU().prepare(operator, inverse)
        return _Swept(self, operator, self.problem.now)


class _Swept(Prepared):
    @torch.no_grad()
    def __init__(self, solver: Band, operator: LinearOperator, task: Task):
        super().__init__(solver, operator)
        u = operator.z.detach().view(task.lower.shape)  # type: ignore[attr-defined]
        states = task.rollout(u)
        expansion = task.expand(states, u)
        scale = solver.problem.f.scale
        self.scale = torch.ones_like(u) if scale is None else scale
        self.free = free_of_bounds(u, expansion.slope, self.scale, task.lower, task.upper)
        H, P = task.curvature(states, u, expansion.costates)
        g, p = torch.zeros_like(expansion.g), torch.zeros_like(expansion.p)
        self.stages = Stages(expansion.F, None, H, g, P, p)
        self.nx = states.shape[-1]

    def solve_transpose(self, b: Tensor) -> LinearResult:
        """With `B^T = H D^-1 E + (1 - E)`, `E` those of the free controls."""
        free, scale = self.free.flatten(1), self.scale.flatten(1)
        y, left, sound = torch.zeros_like(b), b, free.all(1)
        for _ in range(REFINEMENTS):
            w, sound = self._inverse(left)
            y = y + torch.where(free, scale * w, 0)
            left = b - self.operator.rmatvec(y)
        y = y + torch.where(free, 0, left)
        return self._result(y, torch.where(free, left, 0), b, sound)

    def solve(self, b: Tensor, rtol: Tensor | None = None) -> LinearResult:
        """With `B = E D^-1 H + (1 - E)`."""
        free, scale = self.free.flatten(1), self.scale.flatten(1)
        y, sound = torch.where(free, 0, b), free.all(1)
        left = b - self.operator.matvec(y)
        for _ in range(REFINEMENTS):
            w, sound = self._inverse(scale * left)
            y = y + w
            left = b - self.operator.matvec(y)
        return self._result(y, left, b, sound)

    @torch.no_grad()
    def _inverse(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """`H^-1 b` over the free controls, zero elsewhere, `(B, T * nu)`; and whether `H` is definite there."""
        force = torch.zeros_like(self.stages.g)
        force[..., self.nx :] = -b.view(self.free.shape)
        stages = self.stages._replace(g=force)
        policy: Policy = sweep_back(stages, holding(self.free))
        _, u = rollout(stages, policy, torch.zeros_like(stages.p))
        return u.flatten(1), policy.sound

    def _result(self, y: Tensor, left: Tensor, b: Tensor, sound: Tensor) -> LinearResult:
        residual, size = norm(left), norm(b)
        fine = (residual <= self.solver.tolerance(b)) & sound
        status = Status.CONVERGED.where(fine, Status.STAGNATED)
        finite = residual.isfinite()
        status = Status.NON_FINITE.unless(finite, status)
        residual = torch.where(finite, residual, size) / b.shape[1] ** 0.5
        products = 2 * REFINEMENTS
        return LinearResult(
            y, LinearReport(status, torch.full_like(status, REFINEMENTS), residual, products, "linear solve")
        )
